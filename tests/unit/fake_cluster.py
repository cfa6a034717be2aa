"""A `kubectl` for tests of scripts: a few StatefulSets in a JSON file, whose pods come and go as the calls pass.

Run as `kubectl`; the file is FAKE_CLUSTER. It knows the calls that k8s/rollout.sh makes and refuses all others. With
each call some time passes: deleted pods end, the controller makes missing ones from the newest template, and a whole
group of one revision becomes ready a little later. What happens is written down in the file, for the test to judge.
Few imports: it is started hundreds of times.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Cluster = dict[str, Any]


def pass_time(cluster: Cluster) -> None:
    for name, one in cluster["sets"].items():
        if one["generation"] > one["observed"]:
            one["observed"], one["update"] = one["generation"], f"r{one['generation']}"
            continue
        pods = one["pods"]
        for pod in list(pods):
            if pods[pod]["leaving"]:
                pods[pod]["leaving"] -= 1
                if not pods[pod]["leaving"]:
                    del pods[pod]
        for rank in range(one["replicas"]):
            pods.setdefault(f"{name}-{rank}", {"revision": one["update"], "age": 0, "ready": False, "leaving": 0})
        alike = len({p["revision"] for p in pods.values()}) == 1
        for pod in pods.values():
            pod["age"] += 1
            young = min(p["age"] for p in pods.values()) < 3
            pod["ready"] = alike and not young and not pod["leaving"] and not one.get("broken")
    serving = [n for n, one in cluster["sets"].items() if any(p["ready"] for p in one["pods"].values())]
    cluster["log"].append(serving)


def answer(cluster: Cluster, arguments: list[str]) -> str:
    verb, kind, *rest = arguments
    failing = cluster.get("failing", {})
    if failing.get(f"{verb} {kind}", 0) > 0:
        failing[f"{verb} {kind}"] -= 1
        raise PermissionError(f'Error from server (Forbidden): cannot {verb} resource "{kind}"')
    options = {rest[i]: rest[i + 1] for i in range(len(rest) - 1)}
    if (verb, kind) == ("delete", "pods"):
        one = cluster["sets"][options["-l"].removeprefix("inference-group=")]
        for pod in one["pods"].values():
            pod["leaving"], pod["ready"] = pod["leaving"] or 2, False
        if one.get("falls_asleep"):
            one["replicas"] = 0
        cluster["log"].append(f"delete {options['-l']}")
        return ""
    template = options["-o"].removeprefix("jsonpath=")
    if (verb, kind) == ("get", "statefulset") and "-l" in options:
        assert options["-l"] == "app.kubernetes.io/instance=llama"
        return "".join(f"{name}\n" for name in cluster["sets"])
    if (verb, kind) == ("get", "statefulset"):
        one = cluster["sets"][rest[0]]
        fields = {
            ".spec.replicas": one["replicas"],
            ".status.updateRevision": one["update"],
            ".metadata.generation": one["generation"],
            ".status.observedGeneration": one["observed"],
        }
        return str(fields[template.strip("{}")])
    if (verb, kind) == ("get", "pods"):
        one = cluster["sets"][options["-l"].removeprefix("inference-group=")]
        return "".join(
            f"{name} {pod['revision']} {pod['ready']} {'2026-01-01' if pod['leaving'] else ''}\n"
            for name, pod in one["pods"].items()
        )
    raise SystemExit(f"fake kubectl: {arguments}")


def main() -> None:
    with open(os.environ["FAKE_CLUSTER"], "r+", encoding="utf-8") as file:
        cluster = json.load(file)
        pass_time(cluster)
        arguments = sys.argv[1:]
        if "-n" in arguments:
            at = arguments.index("-n")
            assert arguments[at + 1] == "inference"
            del arguments[at : at + 2]
        try:
            sys.stdout.write(answer(cluster, arguments))
        except PermissionError as error:
            sys.exit(str(error))
        finally:
            file.seek(0)
            json.dump(cluster, file)
            file.truncate()


if __name__ == "__main__":
    main()
