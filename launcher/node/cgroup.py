"""Where this process's control group tells of a controller, in cgroup v1 and v2."""

from __future__ import annotations

from collections.abc import Iterator


def places(membership: str, root: str, v2: str, controller: str, v1: str) -> Iterator[str]:
    """Paths below ``root`` (/sys/fs/cgroup) where a file of our cgroup may be, the likely ones first.

    ``membership`` is the text of /proc/self/cgroup; ``v2`` and ``v1`` are what the file is called in either version,
    and ``controller`` is whose it is in v1. In a container the path there may be the host's while our own cgroup is
    mounted as the root, so both places are given.
    """
    for line in membership.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        path = path.strip("/")
        if controllers == "":
            yield f"{root}/{path}/{v2}"
            yield f"{root}/{v2}"
        elif controller in controllers.split(","):
            yield f"{root}/{controller}/{path}/{v1}"
            yield f"{root}/{controller}/{v1}"
