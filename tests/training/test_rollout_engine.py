"""GRPO's rollouts by vLLM: the real driver on a small engine with a real model; and vLLM itself, if there is one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stages.store.workspace import SCRATCH, read_curves
from tests.helpers import TINY, Chain, build, refused, stand_in
from tests.samplers.test_vllm import NEEDS_VLLM, REAL, SMALL, is_dead

HOT = ["grpo.learning_rate=1e-2", "grpo.temperature=1.3"]  # a step changes what is drawn


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_environment(**settings: Any) -> None:
        monkeypatch.setenv("SMALL_VLLM", json.dumps({"model": True, **settings}))

    return set_environment


@pytest.fixture
def line(tmp_path: Path, behave: Callable[..., None]) -> list[str]:
    behave()
    python = stand_in(SMALL, tmp_path / "python")
    return ["stage=grpo", "align=grpo", "grpo.sampler=vllm", f"grpo.runtime.python={python}"]


def gaps(chain: Chain, line: list[str]) -> list[float]:
    """Return the difference between the log-probs of engine and trainer in every step that had one."""
    points = read_curves(chain.folder("grpo", *line))
    return [point["sampler_gap"] for point in points if "sampler_gap" in point]


def stopped(chain: Chain, line: list[str]) -> str:
    """Return the error that ends the training, of which nothing is published and no weights are left in a file."""
    message = refused(*TINY, f"outputs={chain.root}", *line)
    [partial] = chain.root.glob("grpo/*.partial")
    assert not chain.folder("grpo", *line).exists()
    assert not (partial / SCRATCH / "weights").exists()
    return message


def published_weights(chain: Chain, line: list[str]) -> bytes:
    return (chain.folder("grpo", *line) / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_engine_has_the_weights_of_every_step(
    adapter: str, chain: Chain, line: list[str], behave: Callable[..., None], tmp_path: Path
) -> None:
    behave(pids=str(tmp_path / "pids"))
    line = [*line, *HOT, f"grpo.adapter={adapter}"]
    build(chain.root, *line)
    assert len(gaps(chain, line)) >= 5
    assert max(gaps(chain, line)) < 1e-5
    before, after = (
        load_file(chain.folder(name, *line) / "model" / "model.safetensors")
        for name in ("sft", "grpo")
    )
    change = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert change > 1e-2, "stale weights would be seen"
    assert chain.manifest("grpo", *line)["metrics"]["engine"]["vllm"] == "0.0.1"
    [pid] = (tmp_path / "pids").read_text().split()
    assert is_dead(pid), "one engine, which ended with the training"


def test_a_wrong_or_dead_engine_ends_the_training_and_a_resume_is_as_one_run(
    chain: Chain, line: list[str], behave: Callable[..., None]
) -> None:
    line = [*line, *HOT]
    for fault in ("keeps its weights", "mangles a weight"):
        behave(fault=fault)
        message = stopped(chain, line)
        assert "grpo.sampler=vllm" in message and "nats per token" in message
    behave(fault="dies", at=60)
    message = stopped(chain, line)
    assert message.startswith("grpo.runtime.python=") and "Segmentation fault" in message
    Path(message.rpartition("Its log: ")[2].rstrip(".")).unlink()
    assert [*chain.root.glob("grpo/*.partial/scratch/rollouts/*")], "of the steps before"
    behave()
    build(chain.root, *line)
    resumed = published_weights(chain, line)
    build(chain.root, *line, "rebuild=grpo")
    assert resumed == published_weights(chain, line)


@NEEDS_VLLM
@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["grpo.temperature=1.3", "grpo.adapter=lora"]])
def test_vllm_has_the_weights_of_every_step(changes: list[str], tmp_path: Path) -> None:
    sizes = ["model.random_init.heads=1", "stage=grpo", "align=grpo", *changes]
    line = [*sizes, "grpo.sampler=vllm", f"grpo.runtime.python={REAL}"]
    chain = Chain(tmp_path)
    build(chain.root, *line)
    assert len(gaps(chain, line)) >= 5
    assert max(gaps(chain, line)) < 1e-4
    build(chain.root, *sizes)
    rewards = [chain.manifest("grpo", *each)["metrics"]["reward"] for each in (line, sizes)]
    assert rewards[0] == pytest.approx(rewards[1], abs=0.3)
