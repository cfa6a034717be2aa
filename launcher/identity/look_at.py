"""The command that shows the pods of a group, for whoever waits for one of them.

The labels are those that the platforms' own controllers set, so they hold for any manifest.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.model import Identity

MOST_NAMES = 16  #: pods that a selector names one by one


def command(identity: Identity, environ: Mapping[str, str], namespace: str = "") -> str:
    """``kubectl get pods -n NS -l ...``, or what Slurm has instead; empty where no platform is known."""
    if identity.source == "slurm":
        job = environ.get("SLURM_JOB_ID", "")
        return f"squeue --job {job} --steps" if job else "squeue --me --steps"
    where = f" -n {namespace}" if namespace else ""
    selector = _selector(identity)
    if selector:
        return f"kubectl get pods{where} -l {selector}"
    return f"kubectl get pods{where} -o wide" if environ.get("KUBERNETES_SERVICE_HOST") else ""


def _selector(identity: Identity) -> str:
    if identity.source == "lws":  # its name is told to no pod
        return "leaderworkerset.sigs.k8s.io/name"
    if identity.source == "job":
        return f"batch.kubernetes.io/job-name={identity.name.rpartition('-')[0]}"
    if identity.source == "statefulset":
        pods = [name.partition(".")[0] for name in identity.peers]
        if 0 < len(pods) <= MOST_NAMES and not pods[0].isdecimal():  # which would be an IP address
            return f"'statefulset.kubernetes.io/pod-name in ({','.join(pods)})'"
        return "apps.kubernetes.io/pod-index"
    return ""
