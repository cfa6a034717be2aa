"""The checks that need all pods: they run as the group's engine, and rank 0 compares the answers.

``collective_program.py`` is a single file, started by path in the engine's interpreter; it imports no launcher code.
"""
