"""An engine of nothing but torch: each rank computes and adds up with the others, for ever.

python reducer.py RANK SIZE HOST:PORT API_PORT BIND; rank 0 answers 503 when it has made no step for two seconds.
"""

import http.server
import sys
import threading
import time
from importlib import import_module

setproctitle, torch, dist = map(import_module, ("setproctitle", "torch", "torch.distributed"))  # of the engine's Python
rank, size, meet, port, bind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
stepped = [time.monotonic()]


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if time.monotonic() - stepped[0] < 2.0 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def worker() -> None:
    setproctitle.setproctitle(f"VLLM::Worker_TP{rank}")
    dist.init_process_group("gloo", init_method=f"tcp://{meet}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    while True:
        with torch.no_grad():
            state = model(torch.ones(8, 64))
        dist.all_reduce(state)
        stepped[0] = time.monotonic()
        time.sleep(0.01)


if rank == 0:
    server = http.server.ThreadingHTTPServer((bind, port), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
worker()
