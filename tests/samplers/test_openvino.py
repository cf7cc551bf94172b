"""OpenVINO's engine as a sampler, on the tiny model: greedy as transformers, its draws by prompt and seed alone."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision
from stages.models import contract
from stages.models.loading import load_model
from stages.preflight import candidate_sources
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
    terms = contract.load(model)
    return [Request(e.id, e.messages, terms.prompt(e.messages), TEMPERATURES, 0) for e in examples]


@pytest.fixture(scope="module")
def sampler(model: Path) -> OpenVINOSampler:
    decoding = Decoding(TEMPERATURES, LIMIT, Precision.fp32, InferenceRuntime("cpu", 16, 8))
    return OpenVINOSampler.open(model, contract.load(model).stop_ids, decoding)


def tokens(sampler: OpenVINOSampler, requests: list[Request]) -> dict[str, list[list[int] | None]]:
    return {request.id: [c.token_ids for c in found] for request, found in sampler.complete(requests)}


def test_greedy_is_transformers_generate_token_for_token(
    sampler: OpenVINOSampler, requests: list[Request], model: Path
) -> None:
    theirs, stops = load_model(model), contract.load(model).stop_ids
    found: dict[str, list[Completion]] = {r.id: completions for r, completions in sampler.complete(requests)}
    for request in requests:
        ids, ours = torch.tensor([request.token_ids]), found[request.id][0]
        expected = theirs.generate(
            ids, do_sample=False, max_new_tokens=LIMIT, eos_token_id=stops, pad_token_id=stops[0]
        )
        assert ours.token_ids == expected[0, ids.shape[1] :].tolist()
        assert ours.finish_reason == ("stop" if ours.token_ids[-1] in stops else "length")
        scores = theirs(expected).logits[0, ids.shape[1] - 1 : -1].detach().log_softmax(-1)
        logprob = scores.gather(-1, expected[0, ids.shape[1] :, None]).sum()
        assert ours.logprob == pytest.approx(float(logprob), abs=0.05), "of weights in 16 bits, 12 tokens at most"


def test_draws_do_not_depend_on_batch_order_or_company(sampler: OpenVINOSampler, requests: list[Request]) -> None:
    together = tokens(sampler, requests)
    assert tokens(sampler, requests[::-1]) == together
    assert tokens(sampler, requests[7:8]) == {requests[7].id: together[requests[7].id]}
    assert any(found[1] != found[2] for found in together.values()), "candidates of one temperature differ"


def test_draws_follow_the_models_distribution(model: Path, requests: list[Request]) -> None:
    """χ² of first tokens at one prompt, tokens that are expected less than five times taken together; the bound is
    the 1 - 1e-6 quantile (Wilson and Hilferty's approximation)."""
    draws, heat = 2000, 2.0
    decoding = Decoding([heat] * 4, 1, Precision.fp32, InferenceRuntime("cpu", 64, 64))
    sampler = OpenVINOSampler.open(model, contract.load(model).stop_ids, decoding)
    prompt = requests[0].token_ids
    many = [Request(f"{i:016x}", [], prompt, decoding.temperatures, 0) for i in range(draws // 4)]
    found = Counter(ids[0] for drawn in tokens(sampler, many).values() for ids in drawn if ids)
    logits = load_model(model)(torch.tensor([prompt])).logits[0, -1].detach()
    wanted = {token: p * draws for token, p in enumerate((logits / heat).softmax(-1).tolist())}
    often = [token for token, times in wanted.items() if times >= 5]
    classes = [(found[token], wanted[token]) for token in often]
    classes.append((draws - sum(n for n, _ in classes), draws - sum(w for _, w in classes)))
    freedom = len(classes) - 1
    assert freedom > 3
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert sum((n - w) ** 2 / w for n, w in classes) < bound


def test_a_stage_samples_with_it_and_says_so(chain: Chain) -> None:
    asked = ("sample.precision=fp32", "sample=openvino")
    build(chain.root, "stage=pairs", *asked)
    candidates = load(chain.folder("sample", *asked) / "candidates.parquet", Candidate)
    assert {c.sampler for c in candidates} == {"openvino"}
    assert chain.folder("sample", *asked) != chain.folder("sample")


def test_it_says_before_anything_is_built_where_it_computes_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*TINY, f"outputs={tmp_path}", "sample=openvino")
    for stage in ("plan", "sample"):
        assert "computes on the CPU" in refused(*line, f"stage={stage}", "sample.runtime.device=cuda")
    assert refused(*line, "stage=plan", "sample.pool=[{n: 4}]", "sample.runtime.device=cuda").startswith(
        "sample.pool[0]"
    )
    monkeypatch.setattr(candidate_sources, "find_spec", lambda package: None)
    assert "pip install -e '.[openvino]'" in refused(*line, "stage=plan")
    assert not [*tmp_path.glob("*/*/manifest.json")]
