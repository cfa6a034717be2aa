"""Hostile input for everything that reads what others wrote: a target is a function of a random generator.

The same targets run under hypothesis in `tests/unit/test_fuzz.py`, which shrinks what it finds, and for as long as one
likes with `python -m tests.fuzz --minutes N`, which counts the inputs of each and names the seed of a failure.
"""
