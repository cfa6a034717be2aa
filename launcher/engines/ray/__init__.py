"""A Ray cluster as the stages of a plan, and the program that runs in the engine's own interpreter.

``cluster_program.py`` is a single file for Python 3.8 and later, started by path, and imports nothing of the launcher.
"""
