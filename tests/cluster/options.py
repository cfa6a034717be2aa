"""What a run of the suite was given. `./run.sh cluster` puts it into the environment, where every fixture finds it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields

PREFIX = "LAUNCHER_CLUSTER_"


@dataclass(frozen=True)
class Options:
    """Each field is an option of `./run.sh cluster`, and LAUNCHER_CLUSTER_<FIELD> in the environment."""

    image: str = "launcher:dev"  #: the launcher with its reference engine, as the nodes know it
    python_image: str = "python:3.12-slim"  #: an image without the launcher, for the init container to bring it
    engine_image: str = ""  #: a real engine's, without the launcher
    engine_args: str = ""  #: the launcher's arguments for it, in one string
    keep: str = ""  #: "1": leave everything in the cluster

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Options:
        given = {f.name: environ.get(PREFIX + f.name.upper(), "") for f in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value})

    def environ(self) -> dict[str, str]:
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}

    @property
    def engine(self) -> list[str]:
        return shlex.split(self.engine_args)


def here() -> Options:
    return Options.of(os.environ)


def asked_for() -> bool:
    """Whether this run came by `./run.sh cluster`. A plain pytest must not touch whatever kubectl happens to reach."""
    return f"{PREFIX}IMAGE" in os.environ


def image_of(reference: str, name: str) -> dict[str, str]:
    """An entry of kustomize's `images`: `name` becomes `reference`."""
    if "@" in reference:
        new, _, digest = reference.partition("@")
        return {"name": name, "newName": new, "digest": digest}
    new, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        return {"name": name, "newName": reference, "newTag": "latest"}
    return {"name": name, "newName": new, "newTag": tag}
