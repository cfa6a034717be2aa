"""Reading an engine's metrics, and judging forward progress: pure functions over samples and a time."""

from __future__ import annotations

from launcher.agent.health import Progress, in_flight, samples
from launcher.engines.vllm.options import METRICS
from launcher.model import Health

VLLM = Health(
    running=METRICS.running,
    waiting=METRICS.waiting,
    progress=METRICS.progress,
    sleeping=('vllm:engine_sleep_state{sleep_state="awake"}',),
)


def page(*engines: tuple[float, float, float], asleep: float = 0.0, cache: float = 0.1) -> dict[str, dict[str, float]]:
    """Samples of engines: (running, generated, prompt)."""
    text = "# HELP vllm:num_requests_running requests\n"
    for i, (running, generated, prompt) in enumerate(engines):
        text += f'vllm:num_requests_running{{engine="{i}",model_name="m"}} {running}\n'
        text += f'vllm:num_requests_waiting{{engine="{i}",model_name="m"}} 0\n'
        text += f'vllm:generation_tokens_total{{engine="{i}",model_name="m"}} {generated}\n'
        text += f'vllm:prompt_tokens_total{{engine="{i}",model_name="m"}} {prompt}\n'
        text += f'vllm:kv_cache_usage_perc{{engine="{i}",model_name="m"}} {cache}\n'
    text += f'vllm:engine_sleep_state{{sleep_state="awake"}} {asleep}\nunrelated 1\nbroken{{ x\n'
    return samples(text, (*VLLM.running, *VLLM.waiting, *VLLM.progress, *VLLM.sleeping))


def test_requests_without_tokens_are_a_hang_after_the_limit() -> None:
    progress = Progress(VLLM, 300)
    assert progress.look(page((2, 100, 10)), 0) == ""
    assert progress.look(page((2, 100, 10)), 299) == ""
    assert "2 requests running" in progress.look(page((2, 100, 10)), 300)


def test_tokens_and_prefill_count_as_progress() -> None:
    progress = Progress(VLLM, 300)
    progress.look(page((2, 100, 10)), 0)
    assert progress.look(page((2, 101, 10)), 299) == ""
    assert progress.look(page((2, 101, 11)), 590) == ""
    assert progress.look(page((2, 101, 11)), 880) == ""


def test_a_long_prefill_that_fills_the_cache_is_progress() -> None:
    """vLLM counts a prompt's tokens when its prefill is done."""
    progress = Progress(VLLM, 300)
    for step in range(20):
        assert progress.look(page((1, 100, 10), cache=step / 64), 100.0 * step) == ""
    assert "1 requests running" in progress.look(page((1, 100, 10), cache=19 / 64), 2300)


def test_an_idle_engine_does_not_hang() -> None:
    progress = Progress(VLLM, 300)
    progress.look(page((0, 100, 10)), 0)
    assert progress.look(page((0, 100, 10)), 9999) == ""
    assert progress.look(page((1, 100, 10)), 10000) == "", "the clock starts when a request comes"
    assert progress.look(page((1, 100, 10)), 10298) == ""
    assert progress.look(page((1, 100, 10)), 10300) != ""


def test_a_stuck_data_parallel_rank_does_not_hide_in_the_sum() -> None:
    progress = Progress(VLLM, 300)
    progress.look(page((1, 100, 10), (1, 50, 10)), 0)
    words = progress.look(page((1, 900, 10), (1, 50, 10)), 300)
    assert 'engine="1"' in words


def test_a_sleeping_engine_is_left_alone() -> None:
    progress = Progress(VLLM, 300)
    progress.look(page((1, 100, 10), asleep=1), 0)
    assert progress.look(page((1, 100, 10), asleep=1), 9999) == ""


def test_requests_in_flight_are_those_that_run_and_wait_of_all_engines() -> None:
    assert in_flight(VLLM, page((2, 0, 0), (3, 0, 0))) == 5
    assert in_flight(VLLM, {}) == 0
