"""`./run.sh cluster`: the options of the suite, then pytest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.options import Options

DEFAULT = Options()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="./run.sh cluster",
        description="Try the manifests and the launcher on the Kubernetes cluster that kubectl reaches, in namespaces "
        "that are removed at the end. Other arguments are pytest's: -k drain, --collect-only.",
    )
    made.add_argument("--kubeconfig", metavar="FILE", help="The cluster's, instead of kubectl's own choice.")
    made.add_argument("--image", default=DEFAULT.image, help="The launcher's image as the nodes know it [%(default)s].")
    made.add_argument(
        "--python-image",
        default=DEFAULT.python_image,
        metavar="IMAGE",
        help="An image with Python 3.10 or later; the init container brings it the launcher [%(default)s].",
    )
    made.add_argument("--engine-image", default="", metavar="IMAGE", help="A real engine's image, for its scenarios.")
    made.add_argument(
        "--engine-args",
        default="",
        metavar="ARGS",
        help="The launcher's arguments for that engine, as one word: '--engine vllm --model /m --tp 2'.",
    )
    made.add_argument("--keep", action="store_true", help="Leave everything in the cluster, to look at it.")
    return made


def main(arguments: Sequence[str]) -> int:
    given, more = parser().parse_known_args(arguments)
    if bool(given.engine_image) != bool(given.engine_args):
        parser().error("--engine-image and --engine-args belong together: give both, or neither")
    if given.kubeconfig:
        path = Path(os.environ.get("LAUNCHER_CLUSTER_FROM", "."), given.kubeconfig)
        if not path.is_file():
            parser().error(f"--kubeconfig {path}: there is no such file")
        os.environ["KUBECONFIG"] = str(path.resolve())
    options = Options(given.image, given.python_image, given.engine_image, given.engine_args, "1" * given.keep)
    os.environ.update(options.environ())
    folder = str(Path(__file__).parent)
    return int(pytest.main(["-m", "cluster", "-p", "no:xdist", "-v", "-rs", "-o", "timeout=1800", folder, *more]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
