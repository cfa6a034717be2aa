"""vLLM: its command line, the choice between Ray and multiprocessing, and the options it knows."""
