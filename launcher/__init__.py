"""The entrypoint of every pod of a multi-node LLM inference engine.

Nothing is imported here: the guard (``launcher.guard.guard``) must start in milliseconds and stay small.
"""

__version__ = "0.2.0"
