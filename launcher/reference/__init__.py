"""The reference engine: a small but real distributed engine in pure Python, started as the process of each rank.

It serves the OpenAI API and fails the way real engines do. Each token is computed by passing a state through every
worker of every rank over TCP, so a dead or hung rank breaks generation. The text depends on the whole chain, so a test
can tell a right answer from a wrong one (``tokens.expected_text``).

    tokens.py    what a chain of workers computes (pure)
    options.py   the command line (pure)
    chain.py     the worker process and the frames that pass along the chain
    reactor.py   one poll loop: sockets, timers, signals
    http.py      HTTP/1.1 over that loop
    rank.py      every rank's main process: forks workers, watches them, exits with them
    faults.py    injected crashes, hangs and refusals to exit
    leader.py    rank 0: batching and the API

Tests start it thousands of times, so it imports only light modules of the standard library: argparse, but no asyncio,
typing or dataclasses. asyncio alone would more than double the CPU time of a start.
"""
