"""Tells BENCH_FIFO that it has started, then writes to BENCH_NODES how many nodes Ray counts, and stays."""

import os
import time

with open(os.environ["BENCH_FIFO"], "wb"):
    pass

if os.environ.get("BENCH_NODES"):
    import ray  # type: ignore[import-not-found, unused-ignore]

    ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False, logging_level="ERROR")
    alive = sum(node["Alive"] for node in ray.nodes())
    temporary = os.environ["BENCH_NODES"] + ".new"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(str(alive))
    os.replace(temporary, os.environ["BENCH_NODES"])

while True:
    time.sleep(60)
