"""The sampler `hf`: equal to transformers' generation where both are defined, and independent of batch and order."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from stages.hardware import machine, memory
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.models.packing import has_only_attention, pack_pairs, pack_segments
from stages.samplers.drawing import BLOCK, gumbel_max, nucleus
from stages.samplers.generate import GenerateSampler
from stages.samplers.hf import ON_ACCELERATOR, SHORTEST_SHARED, HFSampler, Pace, shared_beginnings
from stages.samplers.sampler import Completion, Request, Sampler, choose_shard_size
from stages.samplers.slots import Slots
from stages.store.records import Candidate, Example, load
from tests.helpers import Chain, build, settings, slow_but

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 256,
}
ARCHITECTURES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=6, **SHAPE)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            head_dim=8,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            **SHAPE,
        )
    ),
    # Soft-capped logits and attention, which needs eager attention; scaled logits.
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            head_dim=8,
            sliding_window=6,
            final_logit_softcapping=0.1,
            attn_implementation="eager",
            **SHAPE,
        )
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=0.2, **SHAPE)),
}


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (count,), generator=generator).tolist()
    return [torch.randint(3, 600, (n,), generator=generator).tolist() for n in lengths]


def complete(
    model: PreTrainedModel,
    requests: list[Request],
    rows: int,
    stop: int = 2,
    kind: type[Sampler] = HFSampler,
) -> dict[str, list[Completion]]:
    sampler = kind(model, [stop], max_new_tokens=12, top_p=1.0, rows=rows)
    return {request.id: completions for request, completions in sampler.complete(requests)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_transformers_generate_token_for_token(name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    requests = [Request(f"{i:04x}", [], ids, [0.0], 0) for i, ids in enumerate(prompts(12))]
    first = complete(model, requests, rows=5)
    # so that some rows end early
    stop = Counter(c[0].token_ids[4] for c in first.values()).most_common(1)[0][0]
    completions = complete(model, requests, rows=5, stop=stop)
    for request in requests:
        ids = torch.tensor([request.token_ids])
        expected = model.generate(
            ids, do_sample=False, max_new_tokens=12, eos_token_id=stop, pad_token_id=0
        )
        assert completions[request.id][0].token_ids == expected[0, ids.shape[1] :].tolist()
    assert {c[0].finish_reason for c in completions.values()} == {"stop", "length"}


@pytest.mark.parametrize(("room", "places"), [(0, 1), (3.5, 3), (1000, 8)])
def test_short_memory_decodes_fewer_rows_at_once_with_the_same_result(
    room: float, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode as many rows as fit. `room`: rows whose keys and values fit into free memory."""
    torch.manual_seed(0)
    model = ARCHITECTURES["qwen3"]().eval()
    requests = [Request(f"{i:04x}", [], ids, [1.0, 0.0], 0) for i, ids in enumerate(prompts(12))]
    expected = complete(copy.deepcopy(model), requests, rows=8)
    # bytes of a token: heads of 8, fp32
    row = 2 * 4 * SHAPE["num_hidden_layers"] * SHAPE["num_key_value_heads"] * 8
    row *= max(len(r.token_ids) for r in requests) + 12
    allocations = list[tuple[int, int]]()
    allocate = Slots._allocate

    def watched(self: Slots, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        allocate(self, layer, keys, values)
        allocations.append(
            (len(self.keys[layer]), self.keys[layer].nbytes + self.values[layer].nbytes)
        )

    monkeypatch.setattr(Slots, "_allocate", watched)
    monkeypatch.setattr(machine, "free_memory", lambda: int(room * row / memory.CACHE_SHARE))
    completions = complete(model, requests, rows=8)
    assert set(allocations) == {(places, places * row // SHAPE["num_hidden_layers"])}
    for request in requests:
        for a, b in zip(expected[request.id], completions[request.id], strict=True):
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)  # up to 12 tokens in fp32


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("pace", [ON_ACCELERATOR, Pace(3, 2, 5), Pace(100, 1, 1)], ids=str)
def test_the_pace_of_a_device_changes_no_result(pace: Pace, name: str) -> None:
    """Transfer tokens every few steps, and pad rows and lengths, with rows that end early, at the limit or enter
    late."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    requests = [
        Request(f"{i:04x}", [], ids, [1.0, 0.0, 0.7], 0) for i, ids in enumerate(prompts(12))
    ]
    sampler = HFSampler(model, list(range(100)), max_new_tokens=12, top_p=1.0, rows=10)
    expected = {request.id: completions for request, completions in sampler.complete(requests)}
    sampler.pace = pace
    completions = {request.id: c for request, c in sampler.complete(requests)}
    assert {c.finish_reason for several in expected.values() for c in several} == {"stop", "length"}
    for request in requests:
        for a, b in zip(expected[request.id], completions[request.id], strict=True):
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)  # up to 12 tokens in fp32


@pytest.mark.parametrize(
    ("device", "prompts", "processes", "expected"),
    [
        ("cpu", 5000, 1, 64),
        ("cpu", 5000, 8, 64),
        ("cuda", 5000, 1, 512),
        ("cuda", 500, 1, 500),
        ("cuda", 500, 4, 125),
    ],
)
def test_shards_are_large_on_an_accelerator(
    device: str, prompts: int, processes: int, expected: int
) -> None:
    """A batch of 512 candidates, four of each prompt. Every process has a shard."""
    runtime = replace(settings("recipe=tiny").sample.runtime, batch_size=512, processes=processes)
    assert choose_shard_size(replace(runtime, shard_size=None), prompts, 4, device) == expected
    assert choose_shard_size(replace(runtime, shard_size=7), prompts, 4, device) == 7


def test_samples_do_not_depend_on_batch_order_or_company(built: Path) -> None:
    folder = next((built / "sft").glob("*/model"))
    model, contract = load_model(folder), load_contract(folder)
    examples = load(next((built / "sample").glob("*/prompts.parquet")), Example)[:20]
    requests = [
        Request(e.id, e.messages, contract.prompt(e.messages), [2.0, 0.0, 0.7, 2.0], 0)
        for e in examples
    ]
    together = complete(model, requests, rows=64, stop=contract.stop_ids[0])
    small = complete(model, requests[::-1], rows=3, stop=contract.stop_ids[0])
    alone = complete(model, requests[7:8], rows=1, stop=contract.stop_ids[0])
    tokens = {i: [c.token_ids for c in completions] for i, completions in together.items()}
    assert tokens == {i: [c.token_ids for c in completions] for i, completions in small.items()}
    assert tokens[requests[7].id] == [c.token_ids for c in alone[requests[7].id]]
    assert len({tuple(t) for ts in tokens.values() for t in ts}) > 10, "candidates differ"


OPENING = list(range(100, 112))
LIKE = [
    [*OPENING, 7, 8, 9],
    OPENING,
    [*OPENING, 7, 8, 9, 10],
    [*OPENING[:5], 3],
    [*OPENING, 11],
    [50, *OPENING],
    OPENING,
]


def test_a_shared_beginning_of_prompts_is_read_once() -> None:
    order, continued, lengths = shared_beginnings(LIKE)
    assert sorted(order) == list(range(len(LIKE)))
    for place, (index, whole, length) in enumerate(zip(order, continued, lengths, strict=True)):
        assert LIKE[index][:length] == LIKE[order[whole]][:length]
        assert length == 0 if whole == place else length >= SHORTEST_SHARED
        assert lengths[whole] == 0, "a prompt that others continue is read whole"
    assert sum(lengths) == 4 * len(OPENING)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_beginning_gives_the_same_answer(name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    requests = [Request(f"{i:016x}", [], [*prompt, 5], [0.0], 0) for i, prompt in enumerate(LIKE)]
    together = complete(model, requests, rows=16)
    alone = {request.id: complete(model, [request], rows=16)[request.id] for request in requests}
    assert {i: [c.token_ids for c in completions] for i, completions in together.items()} == {
        i: [c.token_ids for c in completions] for i, completions in alone.items()
    }


def test_generate_draws_the_same(built: Path) -> None:
    """Compare the sampler `generate` with `hf` on a model for both, by tokens and log-probs."""
    folder = next((built / "sft").glob("*/model"))
    contract = load_contract(folder)
    examples = load(next((built / "sample").glob("*/prompts.parquet")), Example)[:20]
    requests = [
        Request(e.id, e.messages, contract.prompt(e.messages), [1.3, 0.0, 0.7], 0) for e in examples
    ]
    by_hf = complete(load_model(folder), requests, rows=64, stop=contract.stop_ids[0])
    by_generate = complete(
        load_model(folder), requests, rows=7, stop=contract.stop_ids[0], kind=GenerateSampler
    )
    for request in requests:
        for a, b in zip(by_hf[request.id], by_generate[request.id], strict=True):
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)  # up to 12 tokens in fp32


@pytest.mark.parametrize("name", slow_but(ARCHITECTURES, "llama", "gemma3"))
def test_generate_draws_the_same_from_a_model_with_settings_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    requests = [Request(f"{i:04x}", [], ids, [0.9, 0.0], 0) for i, ids in enumerate(prompts(12))]
    fresh = complete(copy.deepcopy(model), requests, rows=5, kind=GenerateSampler)
    model.generation_config.repetition_penalty = 5.0
    used = complete(model, requests, rows=5, kind=GenerateSampler)
    by_hf = complete(model, requests, rows=5)
    for request in requests:
        for a, b, c in zip(fresh[request.id], used[request.id], by_hf[request.id], strict=True):
            assert a.token_ids == b.token_ids == c.token_ids
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.mark.parametrize("pack", [pack_pairs, pack_segments])
@pytest.mark.parametrize("kind", [GenerateSampler, HFSampler])
def test_a_model_that_reads_packed_rows_completes_no_prompts(
    kind: type[Sampler], pack: Callable[[PreTrainedModel], bool]
) -> None:
    model = ARCHITECTURES["llama"]().eval()
    assert pack(model)
    with pytest.raises(ValueError, match="reads packed rows"):
        complete(model, [Request("aa", [], [5, 6], [0.0], 0)], rows=1, kind=kind)


def test_a_recurrent_model_is_sampled_by_generate() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 600, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes)).eval()
    assert not has_only_attention(model)
    assert all(has_only_attention(make()) for make in ARCHITECTURES.values())
    requests = [Request(f"{i:04x}", [], ids, [0.0, 1.0], 0) for i, ids in enumerate(prompts(5))]
    completions = complete(model, requests, rows=1, kind=GenerateSampler)
    assert all(len(c.token_ids) == 12 for several in completions.values() for c in several)


def test_another_seed_draws_something_else(built: Path) -> None:
    model = ARCHITECTURES["llama"]().eval()
    one, two = (
        complete(model, [Request("aa", [], [5, 6, 7], [1.0] * 8, seed)], rows=8) for seed in (0, 1)
    )
    assert [c.token_ids for c in one["aa"]] != [c.token_ids for c in two["aa"]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_log_prob_is_that_of_the_tokens_at_temperature_one(name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    for completion in complete(model, [Request("aa", [], [5, 6, 7], [0.5, 2.0], 0)], rows=2)["aa"]:
        ids = torch.tensor([[5, 6, 7, *completion.token_ids]])
        scores = model(ids).logits[0, 2:-1].detach().log_softmax(-1)
        expected = scores.gather(-1, ids[0, 3:, None]).sum()
        # 12 fp32 log-probs of about 6 nats each
        assert completion.logprob == pytest.approx(float(expected), abs=1e-4)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert nucleus(logits, 0.6).isinf().tolist() == [[False, False, True, True]]
    assert nucleus(logits, 1.0) is logits


def test_the_configured_sampler_samples(chain: Chain) -> None:
    """Draw the same with `generate` and `hf` in fp32, and store the sampler's name in every candidate."""
    build(chain.root, "stage=sample", "sample=generate")
    by_hf, by_generate = (
        load(chain.folder("sample", *chosen) / "candidates.parquet", Candidate)
        for chosen in ((), ("sample=generate",))
    )
    assert {c.sampler for c in by_hf} == {"hf"}
    assert {c.sampler for c in by_generate} == {"generate"}
    assert [(c.candidate_id, c.token_ids) for c in by_hf] == [
        (c.candidate_id, c.token_ids) for c in by_generate
    ]


def test_a_greedy_row_beside_sampled_ones_draws_as_alone() -> None:
    """Also where two tokens tie and top_p leaves only one of them."""
    generator = torch.Generator().manual_seed(3)
    grid = torch.randn(200, 4, BLOCK, generator=generator)
    for row, ties in zip(
        grid.view(200, -1), torch.randint(4 * BLOCK, (200, 2), generator=generator), strict=True
    ):
        row[ties] = row.max() + 20  # half of the probability each
    noise = torch.rand(200, BLOCK + 4, generator=generator).log().neg().log().neg()
    alone, _ = gumbel_max(grid, torch.zeros(200), None)
    heat = torch.arange(200) % 2 * 0.9
    mixed, _ = gumbel_max(grid, heat, noise, top_p=0.4)
    assert torch.equal(alone[heat == 0], mixed[heat == 0])


@pytest.mark.parametrize("rows", [1, 8])
def test_a_model_that_reads_padding_is_asked_one_prompt_at_a_time(rows: int) -> None:
    torch.manual_seed(0)
    model = RwkvForCausalLM(
        RwkvConfig(vocab_size=600, hidden_size=32, num_hidden_layers=2, context_length=64)
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # or all tokens would be equally probable
            parameter.data.normal_(0, 0.3)
    requests = [Request(f"{i:04x}", [], ids, [0.0], 0) for i, ids in enumerate(prompts(4))]
    completions = complete(model, requests, rows=rows, kind=GenerateSampler)
    for request in requests:
        ids = list(request.token_ids)
        for token in completions[request.id][0].token_ids:
            assert int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()) == token
            ids.append(token)
