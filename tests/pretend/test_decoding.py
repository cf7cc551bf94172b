"""Decoding on the pretended accelerator: the CPU's tokens, and few waits for the device."""

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from stages.samplers.generate import GenerateSampler
from stages.samplers.hf import ON_ACCELERATOR, HFSampler
from stages.samplers.sampler import Completion, Request, Sampler
from tests.pretend.test_device import tiny_model

pytestmark = pytest.mark.extended

STEPS = 32
WAITS = 2 / ON_ACCELERATOR.steps  # per step: tokens and log-probs, once every few steps


def complete(
    model: torch.nn.Module,
    rows: int,
    stops: list[int],
    sampler: Callable[..., Sampler] = HFSampler.of,
) -> list[list[Completion]]:
    prompts = torch.randint(
        0, 100, (rows // 4, 6), generator=torch.Generator().manual_seed(1)
    ).tolist()
    requests = [
        Request(f"{i:04x}", [], ids, [1.0, 0.0, 0.7, 1.3], 0) for i, ids in enumerate(prompts)
    ]
    completions = {r.id: c for r, c in sampler(model, stops, STEPS, 1.0, rows).complete(requests)}
    return [completions[request.id] for request in requests]


@pytest.mark.parametrize("rows", [4, 128])
def test_a_decoding_step_waits_less_than_once_whatever_the_rows(
    pretend: ModuleType, rows: int
) -> None:
    model = tiny_model().eval()
    expected = complete(copy.deepcopy(model), rows, [])
    # the check of attention's kernel, once per process, waits for its results
    complete(model.to("pretend"), 4, [])
    waits = list[bytes]()
    listener = pretend.LISTENER(waits.append)
    with pretend.strict():
        pretend.library().pretend_set_listener(listener)
        completions = complete(model, rows, [])
        pretend.library().pretend_set_listener(None)
    assert [[c.token_ids for c in several] for several in completions] == [
        [c.token_ids for c in several] for several in expected
    ]
    assert len(waits) <= WAITS * STEPS


def test_rows_that_stop_between_transfers_lose_later_tokens(pretend: ModuleType) -> None:
    model, stops = tiny_model().eval(), list(range(10))
    expected = complete(copy.deepcopy(model), 16, stops)
    with pretend.strict():
        completions = complete(model.to("pretend"), 16, stops)
    assert {c.finish_reason for several in expected for c in several} == {"stop", "length"}
    for a, b in zip(expected, completions, strict=True):
        assert [(c.token_ids, c.finish_reason) for c in a] == [
            (c.token_ids, c.finish_reason) for c in b
        ]


@pytest.mark.parametrize(
    ("sampler", "attention"), [(GenerateSampler, "sdpa"), (HFSampler.of, "eager")]
)
def test_models_that_read_no_packed_prompts_draw_the_cpus_tokens(
    pretend: ModuleType, sampler: Callable[..., Sampler], attention: str
) -> None:
    model = tiny_model(attn_implementation=attention).eval()
    expected = complete(copy.deepcopy(model), 8, [2], sampler)
    with pretend.strict():
        completions = complete(model.to("pretend"), 8, [2], sampler)
    assert [[c.token_ids for c in several] for several in completions] == [
        [c.token_ids for c in several] for several in expected
    ]
