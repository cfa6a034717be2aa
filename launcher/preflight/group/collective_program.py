"""Runs a real all-reduce over the group, in the engine's interpreter, with the environment that the launcher chose.

    collective_program.py --rank R --pods N --local K --master HOST PORT --backend gloo|nccl --seconds S

One process per GPU (gloo: per pod); the first of each pod starts the others. Rank 0 prints one line, RESULT and a JSON
object: latency and bandwidth for each size. A failure is an exit code and torch's own message.

Bandwidth is the bus bandwidth of nccl-tests, 2 (n - 1) / n * bytes / time: it is comparable with a link's rate for any
number of ranks.
"""

from __future__ import annotations

import os
import sys

# A script started by path has its own folder first on sys.path: `import report` would find ours.
if __name__ == "__main__" and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]

import argparse
import datetime
import importlib
import json
import re
import subprocess
import tempfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESULT = "COLLECTIVE "
SIZES = {"gloo": (8, 4096, 65536, 1 << 20, 8 << 20), "nccl": (8, 65536, 1 << 20, 16 << 20, 256 << 20)}
LEAST_SECONDS = 0.2  # of measuring, for each size
MOST_ROUNDS = 200


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.local_rank == 0:
        children = [
            subprocess.Popen([sys.executable, os.path.abspath(__file__), *argv, "--local-rank", str(i)])
            for i in range(1, options.local)
        ]
    else:
        children = []
    try:
        measure(options)
    except BaseException:
        for child in children:
            child.kill()
        raise
    return max([0, *(child.wait() for child in children)])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--rank", "--pods", "--local"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--local-rank", type=int, default=0)
    parser.add_argument("--master", nargs=2, required=True)
    parser.add_argument("--backend", choices=sorted(SIZES), required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> None:
    log = nccl_log() if options.backend == "nccl" else ""
    torch: Any = importlib.import_module("torch")
    dist: Any = importlib.import_module("torch.distributed")
    rank, world = options.rank * options.local + options.local_rank, options.pods * options.local
    device = torch.device("cpu")
    if options.backend == "nccl":
        device = torch.device("cuda", options.local_rank)
        torch.cuda.set_device(device)
    host, port = options.master
    at = f"[{host}]" if ":" in host else host
    dist.init_process_group(
        options.backend,
        init_method=f"tcp://{at}:{port}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=options.seconds),
    )
    rows = [one_size(size, world, device, torch, dist) for size in SIZES[options.backend]]
    dist.barrier()
    if rank == 0:
        result = {"backend": options.backend, "ranks": world, "torch": torch.__version__, "rows": rows}
        if options.backend == "nccl":
            result["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
            result["transport"] = transport(log)
        print(RESULT + json.dumps(result), flush=True)
    dist.destroy_process_group()


def one_size(size: int, world: int, device: Any, torch: Any, dist: Any) -> dict[str, Any]:
    """The median time of an all-reduce of ``size`` bytes. Checks the sum: a wrong one is worse than none."""
    tensor = torch.ones(size // 4 or 1, dtype=torch.float32, device=device)

    def once() -> float:
        tensor.fill_(1.0)
        synchronize(device, torch)
        began = time.perf_counter()
        dist.all_reduce(tensor)
        synchronize(device, torch)
        return time.perf_counter() - began

    once()
    if not bool((tensor == world).all()):
        raise SystemExit(f"an all-reduce of {size} bytes over {world} ranks gave a wrong sum")
    # All ranks must run the same number of rounds: rank 0 decides.
    rounds = torch.tensor([max(3, min(MOST_ROUNDS, int(LEAST_SECONDS / max(once(), 1e-6))))], device=device)
    dist.broadcast(rounds, 0)
    times = sorted(once() for _ in range(int(rounds.item())))
    median = times[len(times) // 2]
    moved = 2 * (world - 1) / world * tensor.numel() * 4
    return {"bytes": tensor.numel() * 4, "us": round(median * 1e6, 1), "gbps": round(moved / median * 8 / 1e9, 3)}


def synchronize(device: Any, torch: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def nccl_log() -> str:
    """Make NCCL log which network it chose and return the log's path; empty if the user has configured that log."""
    if "NCCL_DEBUG" in os.environ or "NCCL_DEBUG_FILE" in os.environ:
        return ""
    path = os.path.join(tempfile.mkdtemp(prefix="launcher-nccl-"), "%h-%p.log")
    os.environ.update(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT,NET", NCCL_DEBUG_FILE=path)
    return path


def transport(log: str) -> str:
    """``IB`` or ``Socket`` and the devices, from NCCL's log; empty without one."""
    folder = os.path.dirname(log)
    found = []
    for name in os.listdir(folder) if folder else ():
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            found += re.findall(r"NET/(\w+)\s*: Using (.+)", file.read())
    return "; ".join(dict.fromkeys(f"{kind}: {what.strip()}" for kind, what in found))[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
