"""Is this pod fit for the engine? Checks that read and judge, and never change anything but a scratch file.

A check is a function of a `Node` (roots of /proc, /sys and /dev, the environment, what was learned) and gives findings:
what was found, why it matters, what to do. One small module a family; `checks/run.py` runs them all at once under one
deadline; `show.py` makes the screen. `group/compare.py` sets the pods of a group side by side.
"""
