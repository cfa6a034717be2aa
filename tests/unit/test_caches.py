"""What engines and their libraries hash into the names of their caches is alike in every epoch and pod."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from launcher.engines.base import Engine
from launcher.engines.sglang.engine import SGLangEngine
from launcher.engines.vllm.engine import VLLMEngine
from launcher.model import NodeFacts
from launcher.network.addresses import Interface
from launcher.network.environment import Surroundings, collective_environment
from launcher.planning import steps
from launcher.settings import Settings
from tests.unit.engine_plans import context, facts

#: Variables that a name may depend on: vLLM hashes its own; the libraries read theirs.
HASHED = ("VLLM_", "SGLANG_", "TORCH", "PYTORCH_", "TRITON_", "FLASHINFER_", "DG_", "CUDA_", "TVM_", "TILELANG_")
#: On vLLM's list of what it leaves out (`envs.compile_factors`). SGLang hashes no variable.
LEFT_OUT = {
    "0.16.0": {"VLLM_HOST_IP"},
    "0.32.0": {"VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST"},
    "0.33.0": {"VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST"},
}


def hashed(engine: Engine, settings: Settings, size: int, known: NodeFacts) -> list[Mapping[str, str]]:
    """The variables of HASHED that each process of each rank gets, in several epochs, in pods of several addresses."""
    found: list[Mapping[str, str]] = []
    for epoch, ip in ((1, "10.0.0.{}"), (2, "10.0.0.{}"), (19, "10.7.1.{}")):
        for rank in range(size):
            made = context(settings, size, known, epoch, ip)
            address = made.shared.addresses[rank]
            own, _ = collective_environment(Surroundings({}), address, [Interface("eth0", (f"{address}/24",))])
            plan = steps.with_environment(engine.plan(made, rank), {v.name: v.value for v in own})
            for process in (p for stage in plan.stages for p in stage.processes):
                found.append({n: v for n, v in process.environment({}).items() if n.startswith(HASHED)})
    return found


@pytest.mark.parametrize("version", LEFT_OUT)
@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (1, {}),
        (2, {"tp": 2, "backend": "mp"}),
        (2, {"tp": 2, "backend": "ray"}),
        (2, {"dp": 2, "backend": "mp"}),
        (2, {"dp": 2, "backend": "ray"}),
        (4, {"dp": 2, "tp": 2, "backend": "ray"}),
        (1, {"engine_args": ("--api-server-count", "4")}),
    ],
)
def test_vllms_own_variables_are_alike_everywhere(version: str, size: int, asked: dict[str, object]) -> None:
    settings = Settings(model="m").replace(**asked)
    found = []
    for limit in (None, 60.0, 7200.0):
        known = facts(vllm=version, ray="2.60.0")
        found += hashed(VLLMEngine(), settings.replace(startup_timeout=limit), size, known)
    kept = [{n: v for n, v in one.items() if n not in LEFT_OUT[version] | {"SGLANG_HOST_IP"}} for one in found]
    assert all(one == kept[0] for one in kept)
    # What is set at all, this vLLM cannot do without.
    assert set(kept[0]) <= {"VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_RAY_DP_PACK_STRATEGY"}


@pytest.mark.parametrize(("size", "asked"), [(1, {}), (2, {"tp": 2})])
def test_nothing_that_sglang_compiles_with_is_set(size: int, asked: dict[str, object]) -> None:
    settings = Settings(engine="sglang", model="m").replace(**asked)
    for one in hashed(SGLangEngine(), settings, size, facts(sglang="0.5.23")):
        assert set(one) == {"VLLM_HOST_IP", "SGLANG_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST"}
