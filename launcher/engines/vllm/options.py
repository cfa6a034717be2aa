"""The options of ``vllm serve`` that the launcher sets itself, with every alias, and vLLM's metric names.

Read from ``engine/arg_utils.py`` and the front end's arguments of 0.8.5, 0.11.2, 0.14.1, 0.18.1 and 0.32; metrics from
``v1/metrics/loggers.py`` (Prometheus adds ``_total`` to a counter).
"""

from __future__ import annotations

from launcher.engines.arguments import Owned
from launcher.engines.endpoint import OptionNames

_RANK = "from the pod's rank and the group's size"
_LEADER = "from the leader's address, another port each epoch"
_ONE_API = "one API server, at rank 0, serves the whole group"

OWNED = (
    Owned(("--model",), "the model", "model", passed_on=False),  # it goes without an option
    Owned(("--tensor-parallel-size", "-tp"), "the tensor parallel size", "tp", "1"),
    Owned(("--pipeline-parallel-size", "-pp"), "the pipeline parallel size", "pp", "1"),
    Owned(("--data-parallel-size", "-dp"), "the data parallel size", "dp", "1"),
    Owned(("--enable-expert-parallel", "-ep"), "expert parallelism", "ep"),
    Owned(("--served-model-name",), "the served model name", "served_model_name"),
    Owned(("--port",), "the API port", "port", "8000"),
    Owned(("--distributed-executor-backend",), "the distributed backend", "backend", passed_on=False),
    Owned(("--master-port",), "the master port", "master_port", "29501", passed_on=False),
    Owned(("--master-addr",), "the master address", why=_LEADER),
    Owned(("--nnodes", "-n"), "the number of nodes", why=_RANK),
    Owned(("--node-rank", "-r"), "the node rank", why=_RANK),
    Owned(("--headless",), "whether a rank is headless", why=_RANK),
    Owned(("--data-parallel-rank", "-dpn"), "the data parallel rank", why=_RANK),
    Owned(("--data-parallel-start-rank", "-dpr"), "the data parallel start rank", why=_RANK),
    Owned(("--data-parallel-size-local", "-dpl"), "the replicas in a pod", why="--dp over the pods"),
    Owned(("--data-parallel-address", "-dpa"), "the data parallel address", why=_LEADER),
    Owned(("--data-parallel-backend", "-dpb"), "the data parallel backend", why="by --backend"),
    Owned(("--data-parallel-hybrid-lb", "-dph"), "hybrid load balancing", why=_ONE_API),
    Owned(("--data-parallel-external-lb", "-dpe"), "external load balancing", why=_ONE_API),
    Owned(("--data-parallel-multi-port-external-lb", "-dpm"), "external load balancing", why=_ONE_API),
)

#: Images of the project itself: their release tags are vLLM's version.
IMAGES = ("vllm/vllm-openai", "vllm/vllm-openai-cpu")

PREFIXES = ("VLLM_",)
#: Why the plan sets or unsets a variable of vLLM.
REASONS = {
    "VLLM_ENGINE_READY_TIMEOUT_S": "the launcher watches the start by its progress; with API servers in processes of"
    " their own vLLM would give up after 600 s",
    "VLLM_RAY_DP_PACK_STRATEGY": "a replica of the model spans pods here",
    "VLLM_PORT": "a number breaks several nodes, and a Service named vllm would make it a URL (vllm#34199)",
}

#: With these there is no HTTP API (entrypoints/launchers/cli_args.py, 0.32).
WITHOUT_HTTP = ("--grpc", "--api-server-count 0", "-asc 0")

#: What some options need besides: name and, where it matters, value.
NEEDS = {
    "--enable-fault-tolerance": "it works with external load balancing only, which the launcher does not set up",
    "--enable-elastic-ep": "it scales within Ray and changes the number of ranks; the launcher keeps --size pods",
    "--load-format ipc_cache": "it takes the weights from a `vllm preload` daemon that must run in every pod already",
    "--kv-transfer-config": "it needs the connector's library (nixl, mooncake) in every pod, and a peer that decodes "
    "or prefills",
}

#: /health answers this without a body for EngineDeadError and for nothing else. (A middleware of 0.32 answers 503 with
#: a body while expert parallel ranks are added or removed.) Over Ray it is the first sign of a dead worker.
DEAD = 503

METRICS = OptionNames(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    # Prompt tokens are counted when a prefill ends; while it goes on, chunk by chunk, the cache fills.
    progress=(
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",  # an older name
    ),
    sleeping=(
        'vllm:engine_sleep_state{sleep_state="weights_offloaded"}',
        'vllm:engine_sleep_state{sleep_state="discard_all"}',
    ),
)
