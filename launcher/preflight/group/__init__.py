"""The checks that need all pods: they run as an engine of the group, and rank 0 puts the answers side by side.

``collective_program.py`` is a single file, started by path in the engine's interpreter; it imports nothing of ours.
"""
