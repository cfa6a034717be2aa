"""The reference engine: a small but real distributed engine in pure Python, started as the process of each rank.

It serves the API of the engines that the launcher is made for, and it breaks as they do. Each token is computed by
passing a state through every worker of every rank over TCP, so a dead or hung rank breaks generation; and the text that
comes out depends on the whole chain, so a test can tell a right answer from a wrong one (``tokens.expected_text``).

    tokens.py    what a chain of workers computes (pure)
    options.py   the command line (pure)
    chain.py     the worker process and the frames that pass along the chain
    reactor.py   one poll loop: sockets, timers, signals
    http.py      HTTP/1.1 over that loop
    rank.py      what every rank's main process does: fork workers, watch them, end with them
    faults.py    how it is told to crash, to hang or to refuse to die
    leader.py    rank 0: the batches of tokens and the API

Start-up is a budget (a launcher's tests start it thousands of times): the standard library's light modules only, no
asyncio, typing, dataclasses or argparse.
"""
