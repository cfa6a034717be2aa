"""Slurm: one launcher on each node of a job step, started by ``srun --ntasks-per-node=1``.

A step may use fewer nodes than its job, and SLURM_NODEID counts within the step, so the step's own size and node list
win over the job's where srun sets them. Source: slurm.schedmd.com, srun(1), "OUTPUT ENVIRONMENT VARIABLES".
"""

from __future__ import annotations

from launcher.errors import ConfigError
from launcher.identity.nodelist import expand
from launcher.identity.source import Found, Pod

SIZES = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")


def look(pod: Pod) -> Found | str:
    rank = pod.number("SLURM_NODEID")
    if rank is None:
        return _outside(pod)
    size_variable = next((v for v in SIZES if pod.text(v)), "")
    list_variable = next((v for v in LISTS if pod.text(v)), "")
    if not size_variable or not list_variable:
        raise ConfigError(
            f"SLURM_NODEID={rank} says that this is a Slurm step, but "
            + ("SLURM_NNODES" if not size_variable else "SLURM_JOB_NODELIST")
            + " is not set",
            "pass Slurm's environment on into the container, or give --rank, --size and --leader",
        )
    size = pod.number(size_variable, least=1) or 1
    size_from, list_from = (f"{v}={pod.text(v)}" for v in (size_variable, list_variable))
    nodes = expand(pod.text(list_variable), list_from)
    if len(nodes) != size:
        raise ConfigError(
            f"{size_from} contradicts {list_from}, which names {len(nodes)} nodes",
            "give --rank, --size and --leader, or --peers",
        )
    _check_task(pod, rank, nodes, list_from)
    return Found(
        rank=rank,
        rank_from=f"SLURM_NODEID={rank}",
        size=size,
        size_from=size_from,
        leader=nodes[0],
        leader_from=f"the first of {list_from}",
        name=nodes[rank] if rank < size else pod.name,
        why=f"SLURM_NODEID={rank}, {size_from}, {list_from}",
        peers=nodes,
        # Two jobs may follow one another on a node: the job and the step tell their groups apart.
        namespace=".".join(filter(None, (f"slurm-{pod.text('SLURM_JOB_ID')}", pod.text("SLURM_STEP_ID")))),
        fix="start one launcher a node: srun --ntasks-per-node=1",
        warnings=_warnings(pod, size),
    )


def _outside(pod: Pod) -> str:
    """Not a step. In a shell of salloc the job's variables are there, and only this machine runs what is typed."""
    nodes = pod.number("SLURM_NNODES") or pod.number("SLURM_JOB_NUM_NODES") or 1
    said = pod.settings
    if pod.text("SLURM_JOB_ID") and nodes > 1 and pod.wanted_size != 1 and said.rank is None:
        raise ConfigError(
            f"SLURM_NNODES={nodes} and no SLURM_NODEID: this is a Slurm allocation (salloc) and no step, so the "
            f"launcher "
            "runs on this machine only",
            "start it on every node: srun --ntasks-per-node=1 launcher ...; or give --size 1 to use this machine alone",
        )
    return "SLURM_NODEID is not set: not inside a Slurm step"


def _check_task(pod: Pod, rank: int, nodes: tuple[str, ...], list_from: str) -> None:
    if len(nodes) > 1 and (local := pod.number("SLURM_LOCALID")):
        raise ConfigError(
            f"SLURM_LOCALID={local}: Slurm started more than one launcher on this node (task {local} here)",
            "start one a node: srun --ntasks-per-node=1; the engine starts its own processes, one a GPU",
        )
    own = pod.text("SLURMD_NODENAME")
    if own in nodes and rank < len(nodes) and nodes[rank] != own:
        raise ConfigError(
            f"SLURM_NODEID={rank} is {nodes[rank]} in {list_from}, but this node is SLURMD_NODENAME={own}",
            "give --rank, --size and --leader (an arbitrary task distribution cannot be read from the list)",
        )


def _warnings(pod: Pod, size: int) -> tuple[str, ...]:
    if size == 1 or pod.text("SLURM_STEP_ID"):
        return ()
    return (
        "SLURM_STEP_ID is not set: started by the batch script itself, not by srun, so only this node of "
        f"{size} runs a launcher; use srun --ntasks-per-node=1 launcher ...",
    )
