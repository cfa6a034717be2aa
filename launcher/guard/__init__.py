"""PID 1 of a pod: starts, reaps and stops whole process trees, and outlives the agent.

The guard must start in milliseconds and stay small: no network, no asyncio and no third-party import may enter here.
"""
