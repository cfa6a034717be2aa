"""SGLang: its command line, addresses and limits."""
