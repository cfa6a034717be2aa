"""Starts the launcher from the folder that this file lies in. Must be readable by any Python, to refuse old ones."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
LIB = os.path.join(HERE, "lib")


def main():
    if sys.version_info < (3, 10):  # noqa: UP036 - the image says which Python there is
        another_python()
    sys.path.insert(0, LIB)
    keep_compiled()
    if sys.argv[1:2] == ["-m"]:  # the launcher starts a module of its own
        import runpy

        module = sys.argv[2]
        del sys.argv[1:3]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    from launcher.__main__ import main as launcher

    launcher()


def another_python():
    """The image's first Python is too old: take a later one of its own, or say so."""
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3.10"):
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            python = os.path.join(folder, name)
            if os.access(python, os.X_OK):
                command = [python, "-I", "-S", os.path.join(HERE, "run.py")]
                os.execv(python, command + sys.argv[1:])
    version = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write("launcher: " + sys.executable + " is Python " + version + "; 3.10 or later is needed\n")
    sys.stderr.write("  fix: set LAUNCHER_PYTHON to a later Python of this image\n")
    sys.exit(78)


def keep_compiled():
    """Compiled files come for one Python. For another, on a read-only root, they are kept in the state folder."""
    shipped = os.path.join(LIB, "launcher", "__pycache__", "__main__." + sys.implementation.cache_tag + ".pyc")
    state = os.environ.get("LAUNCHER_STATE_DIR", "")
    if os.path.exists(shipped) or os.access(LIB, os.W_OK) or not os.access(state, os.W_OK):
        return
    sys.pycache_prefix = os.path.join(state, "pycache")


main()
