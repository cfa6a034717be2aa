"""Is this pod fit for the engine? The checks only read and judge; at most they write a scratch file.

A check is a function from a `Node` (roots of /proc, /sys and /dev, the environment, what was learned) to findings: what
was found, why it matters, what to do. Each family of checks is one small module. `checks/run.py` runs all checks
concurrently under one deadline, `show.py` prints the findings, and `group/compare.py` compares the pods of a group.
"""
