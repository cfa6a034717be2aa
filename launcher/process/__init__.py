"""Starts, watches, reaps and stops whole process trees: the guard, its channel to the agent, and what is left behind.

Nothing is imported here: the guard must start in milliseconds. No network, no asyncio and no third-party import may
enter this room, but psutil in ``leftovers``, which only the agent uses.
"""
