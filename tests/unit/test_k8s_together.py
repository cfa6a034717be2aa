"""Components two by two: what k8s/README.md says does not go together stops the build; every other pair is right."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.manifests import K8S, Object, folders, groups, kubectl, named, of_kind, read
from tests.unit.test_k8s_build import NEWEST, check, oldest
from tests.unit.test_k8s_groups import check_names, check_rack

#: parts of others, and what every engine here has
_INSIDE = {
    "components/group-of-several",
    "components/shared-by-groups",
    "components/launcher-copy",
    "lws/as-lws/template",
}
#: what must be below a component
_BELOW = {"components/keda-packed": "components/packed", "lws/keda": "lws/as-lws", "lws/topology": "lws/as-lws"}
COMPONENTS = [name for name in map(named, folders("Component")) if name not in _INSIDE]


def refused() -> set[frozenset[str]]:
    """The pairs of the README's table."""
    table = (K8S / "README.md").read_text().split("## What does not go together")[1].split("\n\n")[1]
    found = set()
    for row in table.splitlines()[2:]:
        these, those = (re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:3])
        found |= {frozenset((full(a), full(b))) for a in these for b in those}
    return found


def full(name: str) -> str:
    return name if name.startswith("lws/") else f"components/{name}"


def layers(*names: str) -> list[str]:
    """In the order in which they are listed, each once, with what must be below."""
    below = {n: _BELOW[n] for n in names if n in _BELOW}
    wanted = dict.fromkeys(x for n in names for x in (below.get(n), n) if x)
    # a LeaderWorkerSet is made of a StatefulSet that is complete
    return sorted(wanted, key=lambda n: n.startswith("lws/"))


def write(folder: Path, components: list[str], **more: str) -> Path:
    folder.mkdir()
    place = folder.resolve()
    kustomization = {
        "resources": [os.path.relpath(K8S / "engines/vllm-mp", place)],
        "components": [os.path.relpath(K8S / c, place) for c in components],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)


def test_the_table_speaks_of_what_is_there() -> None:
    assert refused()
    assert {name for pair in refused() for name in pair} <= set(COMPONENTS)


@pytest.mark.parametrize("pair", sorted(map(sorted, refused())), ids="+".join)
def test_build_stops_where_two_do_not_go_together(pair: list[str], tmp_path: Path) -> None:
    for order in (pair, pair[::-1]):
        components = list(dict.fromkeys(x for n in order for x in (_BELOW.get(n), n) if x))
        done = kustomize(write(tmp_path / order[0].replace("/", "-"), components))
        assert done.returncode != 0, f"{components} builds"


ALLOWED = [pair for pair in itertools.combinations(COMPONENTS, 2) if not any(
    frozenset((a, b)) in refused() for a, b in itertools.combinations(layers(*pair), 2))]  # fmt: skip


#: built at once: a start of kubectl costs something, and a kustomization costs the square of its size
TOGETHER = 12


def built(pairs: Sequence[tuple[str, str]], folder: Path) -> list[list[Object]]:
    """Some pairs by one kustomization: each under a prefix of its own, which is taken off again."""
    names = [f"pair{i:03}-" for i in range(len(pairs))]
    for name, pair in zip(names, pairs, strict=True):
        write(folder / name, layers(*pair), namePrefix=name)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": names}))
    done = kustomize(folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Object]] = {name: [] for name in names}
    for text in done.stdout.split("\n---\n"):
        (name,) = set(re.findall(r"\bpair\d{3}-", text))
        found[name] += read(text.replace(name, ""))
    return list(found.values())


def chunks() -> list[list[tuple[str, str]]]:
    # Apart: kustomize could take a StatefulSet for the target of a LeaderWorkerSet's ScaledObject (see lws/keda).
    of_sets, of_lws = ([p for p in ALLOWED if p[1].startswith("lws/") == lws] for lws in (False, True))
    return [some[i : i + TOGETHER] for some in (of_sets, of_lws) for i in range(0, len(some), TOGETHER)]


@pytest.mark.parametrize("pairs", chunks(), ids=lambda pairs: "+".join(pairs[0]))
def test_every_other_pair_is_right(pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    for pair, objects in zip(pairs, built(pairs, tmp_path), strict=True):
        assert objects
        try:
            check_pair(objects, oldest(*pair))
        except AssertionError as error:
            raise AssertionError(f"{' with '.join(pair)}: {error}") from error


def check_pair(objects: list[Object], version: str) -> None:
    check_names(objects)
    for o in objects:
        check(o, version)
        check(o, NEWEST)
    (pods,) = groups(objects)
    for scaled in of_kind(objects, "ScaledObject"):
        least = scaled["spec"]["minReplicaCount"]
        assert least == (0 if pods.owner["kind"] == "LeaderWorkerSet" else pods.size)
        assert pods.owner["spec"]["replicas"] == 0
    if "affinity" in pods.spec:
        check_rack(pods)
    least = pods.owner["metadata"].get("annotations", {}).get("scheduling.volcano.sh/group-min-member")
    assert least in (None, str(pods.size))
    models = [v for v in pods.spec["volumes"] if v["name"] == "models"]
    assert all(len(v) == 2 for v in models), "a volume has one source"
