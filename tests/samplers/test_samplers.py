"""The sampler `hf`: equal to transformers' generation where both are defined, and independent of batch and order."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from stages.hardware import machine, memory
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.samplers.generate import GenerateSampler
from stages.samplers.gumbel_max import nucleus
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request
from stages.samplers.slots import Slots
from stages.store.records import Candidate, Example, load
from tests.helpers import Chain, build

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 256,
}


def build_model(
    model: type[PreTrainedModel], config: type[PreTrainedConfig], **options: Any
) -> PreTrainedModel:
    return model(config(**SHAPE | options))


ARCHITECTURES = {
    "llama": partial(build_model, LlamaForCausalLM, LlamaConfig),
    "qwen3": partial(build_model, Qwen3ForCausalLM, Qwen3Config, head_dim=8),
    "mistral": partial(build_model, MistralForCausalLM, MistralConfig, sliding_window=6),
    "gemma3": partial(
        build_model,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    # Soft-capped logits and attention, which needs eager attention; scaled logits.
    "gemma2": partial(
        build_model,
        Gemma2ForCausalLM,
        Gemma2Config,
        head_dim=8,
        sliding_window=6,
        final_logit_softcapping=0.1,
        attn_implementation="eager",
    ),
    "granite": partial(build_model, GraniteForCausalLM, GraniteConfig, logits_scaling=0.2),
}


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (count,), generator=generator).tolist()
    return [torch.randint(3, 600, (n,), generator=generator).tolist() for n in lengths]


DrawnCompletions = dict[str, list[Completion]]


def requests_of(count: int, *temperatures: float) -> list[Request]:
    return [
        Request(f"{i:04x}", [], ids, [*temperatures], 0) for i, ids in enumerate(prompts(count))
    ]


def complete(
    model: PreTrainedModel,
    requests: list[Request],
    rows: int,
    *stops: int,
    kind: Any = HFSampler.of,
) -> DrawnCompletions:
    sampler = kind(model, [*stops] or [2], 12, 1.0, rows)
    return {request.id: completions for request, completions in sampler.complete(requests)}


def assert_same(one: DrawnCompletions, two: DrawnCompletions) -> None:
    """Compare tokens, and the log-probs of up to 12 tokens in fp32."""
    for name, completions in one.items():
        for a, b in zip(completions, two[name], strict=True):
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return ARCHITECTURES[name]().eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_transformers_generate_token_for_token(name: str) -> None:
    """Also with a stop token by which some rows end early. `gemma2` cannot read packed prompts."""
    model = make(name)
    plain = make(name)
    requests = requests_of(8, 0.0)
    first = complete(model, requests, 5)
    [(stop, _)] = Counter(drawn[0].token_ids[4] for drawn in first.values()).most_common(1)
    completions = complete(model, requests, 5, stop)
    for request in requests:
        ids = torch.tensor([request.token_ids])
        expected = plain.generate(
            ids, do_sample=False, max_new_tokens=12, eos_token_id=stop, pad_token_id=0
        )
        [completion] = completions[request.id]
        assert completion.token_ids == expected[0, ids.shape[1] :].tolist()
        whole = torch.tensor([request.token_ids + completion.token_ids])
        scores = plain(whole).logits[0, ids.shape[1] - 1 : -1].detach().log_softmax(-1)
        logprob = scores.gather(-1, whole[0, ids.shape[1] :, None]).sum()
        assert completion.logprob == pytest.approx(float(logprob), abs=1e-4)
    assert {drawn[0].finish_reason for drawn in completions.values()} == {"stop", "length"}


def test_short_memory_decodes_fewer_rows_at_once_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("qwen3")
    requests = requests_of(8, 1.0, 0.0)
    expected = complete(model, requests, 8)
    # bytes of a token: heads of 8, fp32
    row = 2 * 4 * SHAPE["num_hidden_layers"] * SHAPE["num_key_value_heads"] * 8
    row *= max(len(request.token_ids) for request in requests) + 12
    places = set[int]()
    allocate = Slots._allocate

    def watched(self: Slots, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        allocate(self, layer, keys, values)
        places.add(len(self.keys[layer]))

    monkeypatch.setattr(Slots, "_allocate", watched)
    monkeypatch.setattr(machine, "free_memory", lambda: int(3.5 * row / memory.CACHE_SHARE))
    assert_same(expected, complete(model, requests, 8))
    assert places == {3}


def test_samples_do_not_depend_on_batch_order_or_company(built: Path) -> None:
    folder = next((built / "sft").glob("*/model"))
    model = load_model(folder)
    contract = load_contract(folder)
    requests = list[Request]()
    for e in load(next((built / "sample").glob("*/prompts.parquet")), Example)[:20]:
        temperatures = [2.0, 0.0, 0.7, 2.0]
        requests.append(Request(e.id, e.messages, contract.prompt(e.messages), temperatures, 0))
    together = complete(model, requests, 64, *contract.stop_ids)
    assert_same(complete(model, requests[::-1], 3, *contract.stop_ids), together)
    assert_same(complete(model, requests[7:8], 1, *contract.stop_ids), together)
    texts = {(*c.token_ids,) for drawn in together.values() for c in drawn}
    assert len(texts) > 10, "candidates differ"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_shared_beginning_gives_the_same_answer(name: str) -> None:
    opening = [*range(100, 112)]
    endings = [[7, 8, 9, 5], [5], [7, 8, 9, 10, 5], [11, 5], [5]]
    prompts = [[*opening, *ending] for ending in endings]
    prompts += [[*opening[:5], 3, 5], [50, *opening, 5]]
    requests = [Request(f"{i:016x}", [], prompt, [0.0], 0) for i, prompt in enumerate(prompts)]
    model = make(name)
    together = complete(model, requests, 16)
    for request in requests:
        assert_same(complete(model, [request], 16), together)


def test_generate_draws_the_same_from_a_model_with_settings_of_its_own() -> None:
    requests = requests_of(8, 0.9, 0.0)
    by_hf = complete(make("gemma3"), requests, 5)
    model = make("gemma3")
    model.generation_config.repetition_penalty = 5.0
    assert_same(complete(model, requests, 5, kind=GenerateSampler), by_hf)


def test_a_recurrent_model_is_sampled_by_generate() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 600, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes)).eval()
    assert isinstance(HFSampler.of(model, [2], 12, 1.0, 1), GenerateSampler)
    drawn = complete(model, requests_of(5, 0.0, 1.0), 4)
    assert {len(c.token_ids) for completions in drawn.values() for c in completions} == {12}


def test_a_model_that_reads_padding_is_asked_one_prompt_at_a_time() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}
    model = RwkvForCausalLM(RwkvConfig(**sizes)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # or all tokens would be equally probable
            parameter.data.normal_(0, 0.3)
    requests = requests_of(4, 0.0)
    together = complete(model, requests, 8)
    for request in requests:
        assert_same(complete(model, [request], 1), together)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert nucleus(logits, 0.6).isinf().tolist() == [[False, False, True, True]]
    assert nucleus(logits, 1.0) is logits


def test_the_configured_sampler_samples(chain: Chain) -> None:
    """Draw the same with `generate` and `hf` in fp32, and store the sampler's name in every candidate."""
    build(chain.root, "stage=sample", "sample=generate")
    by_hf = load(chain.folder("sample") / "candidates.parquet", Candidate)
    folder = chain.folder("sample", "sample=generate")
    by_generate = load(folder / "candidates.parquet", Candidate)
    assert {c.sampler for c in by_generate} == {"generate"}
    for one, other in zip(by_hf, by_generate, strict=True):
        assert (one.sampler, one.token_ids) == ("hf", other.token_ids)
