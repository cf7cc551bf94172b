"""OpenVINO's engine as a sampler, on the tiny model: greedy tokens equal transformers', and draws depend on prompt and
seed alone."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.preflight import sources
from stages.samplers.openvino import OpenVINOSampler
from stages.samplers.sampler import Completion, Decoding, Request
from stages.store.records import Candidate, Example, load
from tests.helpers import TINY, Chain, build, refused

pytest.importorskip("openvino_genai")
TEMPERATURES = [0.0, 1.3, 1.3, 0.7]
LIMIT = 12


@pytest.fixture(scope="module")
def model(built: Path) -> Path:
    return next((built / "sft").glob("*/model"))


@pytest.fixture(scope="module")
def requests(built: Path, model: Path) -> list[Request]:
    examples = load(next((built / "sample").glob("*/prompts.parquet")), Example)[:20]
    contract = load_contract(model)
    return [Request(e.id, e.messages, contract.prompt(e.messages), TEMPERATURES, 0) for e in examples]


@pytest.fixture(scope="module")
def sampler(model: Path) -> OpenVINOSampler:
    decoding = Decoding(TEMPERATURES, LIMIT, Precision.fp32, InferenceRuntime("cpu", 16, 8))
    return OpenVINOSampler.open(model, load_contract(model).stop_ids, decoding)


def tokens(sampler: OpenVINOSampler, requests: list[Request]) -> dict[str, list[list[int] | None]]:
    return {request.id: [c.token_ids for c in completions] for request, completions in sampler.complete(requests)}


def test_greedy_is_transformers_generate_token_for_token(
    sampler: OpenVINOSampler, requests: list[Request], model: Path
) -> None:
    reference_model, stops = load_model(model), load_contract(model).stop_ids
    completions_by_id: dict[str, list[Completion]] = {
        r.id: completions for r, completions in sampler.complete(requests)
    }
    for request in requests:
        ids, completion = torch.tensor([request.token_ids]), completions_by_id[request.id][0]
        expected = reference_model.generate(
            ids, do_sample=False, max_new_tokens=LIMIT, eos_token_id=stops, pad_token_id=stops[0]
        )
        assert completion.token_ids == expected[0, ids.shape[1] :].tolist()
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] in stops else "length")
        scores = reference_model(expected).logits[0, ids.shape[1] - 1 : -1].detach().log_softmax(-1)
        logprob = scores.gather(-1, expected[0, ids.shape[1] :, None]).sum()
        assert completion.logprob == pytest.approx(float(logprob), abs=0.05), "at most 12 tokens, with 16-bit weights"


def test_draws_do_not_depend_on_batch_order_or_company(sampler: OpenVINOSampler, requests: list[Request]) -> None:
    together = tokens(sampler, requests)
    assert tokens(sampler, requests[::-1]) == together
    assert tokens(sampler, requests[7:8]) == {requests[7].id: together[requests[7].id]}
    assert any(ids[1] != ids[2] for ids in together.values()), "candidates of one temperature differ"


def test_draws_follow_the_models_distribution(model: Path, requests: list[Request]) -> None:
    """Bound χ² of first tokens at one prompt by its 1 - 1e-6 quantile (Wilson and Hilferty's approximation). Tokens
    with an expected count below five form one class."""
    draws, heat = 2000, 2.0
    decoding = Decoding([heat] * 4, 1, Precision.fp32, InferenceRuntime("cpu", 64, 64))
    sampler = OpenVINOSampler.open(model, load_contract(model).stop_ids, decoding)
    prompt = requests[0].token_ids
    many = [Request(f"{i:016x}", [], prompt, decoding.temperatures, 0) for i in range(draws // 4)]
    counts = Counter(ids[0] for drawn in tokens(sampler, many).values() for ids in drawn if ids)
    logits = load_model(model)(torch.tensor([prompt])).logits[0, -1].detach()
    expected = {token: p * draws for token, p in enumerate((logits / heat).softmax(-1).tolist())}
    often = [token for token, times in expected.items() if times >= 5]
    classes = [(counts[token], expected[token]) for token in often]
    classes.append((draws - sum(n for n, _ in classes), draws - sum(w for _, w in classes)))
    freedom = len(classes) - 1
    assert freedom > 3
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert sum((n - w) ** 2 / w for n, w in classes) < bound


def test_a_stage_samples_with_openvino_and_stores_its_name(chain: Chain) -> None:
    overrides = ("sample.precision=fp32", "sample=openvino")
    build(chain.root, "stage=pairs", *overrides)
    candidates = load(chain.folder("sample", *overrides) / "candidates.parquet", Candidate)
    assert {c.sampler for c in candidates} == {"openvino"}
    assert chain.folder("sample", *overrides) != chain.folder("sample")


def test_preflight_reports_a_wrong_device_and_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*TINY, f"outputs={tmp_path}", "sample=openvino")
    for stage in ("plan", "sample"):
        message = refused(*line, f"stage={stage}", "sample.runtime.device=cuda")
        assert "sampler=openvino needs the CPU" in message and "sample.runtime.device=cpu" in message
    assert refused(*line, "stage=plan", "sample.pool=[{n: 4}]", "sample.runtime.device=cuda").startswith(
        "sample.pool[0]"
    )
    monkeypatch.setattr(sources, "find_spec", lambda package: None)
    assert "pip install -e '.[openvino]'" in refused(*line, "stage=plan")
    assert not [*tmp_path.glob("*/*/manifest.json")]
