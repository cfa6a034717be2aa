"""Real engines for tests: their installs, a tiny model, and the arguments that make them run without a GPU."""
