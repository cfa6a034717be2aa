"""Programs that run in the engine's interpreter, not in the launcher's: each a single file for Python 3.8 and later.

They are started by path and import nothing of the launcher. Their folder comes first on ``sys.path`` then, so nothing
here may be named like a package that an engine imports.
"""
