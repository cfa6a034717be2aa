"""The options of SGLang's server that the launcher sets itself, with every alias, and SGLang's metric names.

Read from ``server_args.py`` and ``metrics/collector.py`` of 0.4.4.post1, 0.4.10.post2, 0.5.9 and 0.5.23.
"""

from __future__ import annotations

from launcher.engines.arguments import Owned
from launcher.engines.endpoint import OptionNames

_RANK = "from the pod's rank and the group's size"
_LEADER = "from the leader's address, another port each epoch"

OWNED = (
    Owned(("--model-path", "--model"), "the model", "model"),
    Owned(("--tp-size", "--tensor-parallel-size", "--tp"), "the tensor parallel size", "tp", "1"),
    Owned(("--pp-size", "--pipeline-parallel-size", "--pp"), "the pipeline parallel size", "pp", "1"),
    Owned(("--dp-size", "--data-parallel-size", "--dp"), "the data parallel size", "dp", "1"),
    Owned(("--enable-ep-moe",), "expert parallelism", "ep", passed_on=False),  # by --ep-size in newer releases
    Owned(("--served-model-name",), "the served model name", "served_model_name"),
    Owned(("--port",), "the API port", "port", "30000", passed_on=False),  # beside --host
    Owned(
        ("--dist-init-addr", "--nccl-init-addr"), "the rendezvous address", why=_LEADER + "; the port is --master-port"
    ),
    Owned(("--nnodes",), "the number of nodes", why=_RANK),
    Owned(("--node-rank",), "the node rank", why=_RANK),
    Owned(("--use-ray",), "Ray", why="the launcher starts every rank itself"),
)

#: How many ranks share the experts: a divisor of --tp-size. `--ep` makes it as large as --tp.
EXPERTS = ("--ep-size", "--expert-parallel-size", "--ep")
#: With these there is no HTTP API (launch_server.py, 0.5.23).
WITHOUT_HTTP = ("--smg-grpc-mode", "--grpc-mode")

METRICS = OptionNames(
    running=("sglang:num_running_reqs",),
    waiting=("sglang:num_queue_reqs",),
    progress=(
        "sglang:realtime_tokens_total",
        "sglang:generation_tokens_total",
        "sglang:prompt_tokens_total",
        "sglang:num_used_tokens",
        "sglang:token_usage",
        "sglang:gen_throughput",
    ),
)

#: Images of the project itself: their release tags are SGLang's version.
IMAGES = ("lmsysorg/sglang",)
PREFIXES = ("SGLANG_", "SGL_")
