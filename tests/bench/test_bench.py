"""The benchmarks' own arithmetic: what they call an operation of the model."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stages.models import packing
from stages.models.loading import load_model
from stages.models.scoring import install_scoring
from stages.store.manifest import read_manifest
from tests.bench import bakeoff, flops
from tests.bench.flops import Run
from tests.helpers import ROOT, TINY, Chain, settings

LENGTH, PROMPT = 24, 10
STAGES = ("sft", "reference", "dpo")
BENCHMARKS = sorted(
    path.stem for path in (ROOT / "tests" / "bench").glob("*.py") if "test" not in path.stem
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"tests.bench.{name}")


def scored_pair(folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, and a pair of equal completions for it: packed, it is read once."""
    ids = torch.arange(20, 20 + LENGTH)[None].repeat(2, 1)
    labels = torch.where(torch.arange(LENGTH) < PROMPT, -100, ids)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "fused_lm_head": True,
    }
    return install_scoring(load_model(folder)), batch


def test_operations_are_those_that_torch_counts(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        packing, "RUN_BY_RUN_DEVICES", ()
    )  # the kernel for runs has no products that torch could count
    folder = chain.folder("sft") / "model"
    model, batch = scored_pair(folder)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**batch)
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    per_sight = (
        4
        * model.config.num_attention_heads
        * model.config.head_dim
        * model.config.num_hidden_layers
    )
    assert attention == 2 * per_sight * LENGTH**2, (
        "here every token meets every other, in both sequences"
    )
    seen = per_sight * LENGTH * (LENGTH + 1) / 2
    our_flops = flops.forward(flops.empty(folder), [Run(0, LENGTH, 2 * (LENGTH - PROMPT))])
    assert our_flops - seen == counter.get_total_flops() - attention


def test_a_prompt_counts_once_and_both_completions_see_it(chain: Chain) -> None:
    model = flops.empty(chain.folder("sft") / "model")
    whole = flops.forward(model, [Run(0, LENGTH, 5)])
    divided = flops.forward(model, [Run(0, PROMPT, 0), Run(PROMPT, LENGTH - PROMPT, 5)])
    assert divided == pytest.approx(whole)


def test_what_the_stages_computed_is_read_from_their_nodes(chain: Chain) -> None:
    at = {name: chain.folder(name) for name in ("data", "sft", "pairs", "reference", "dpo")}
    model, cfg = flops.empty(at["sft"] / "model"), settings(*TINY)
    stage_flops = [
        flops.of_sft(model, cfg.sft, at),
        flops.of_reference(model, at),
        flops.of_dpo(model, cfg.dpo, at),
    ]
    assert [work.steps for work in stage_flops] == [
        read_manifest(at[name])["metrics"].get("steps", 0) for name in STAGES
    ]
    assert stage_flops[0].tokens == read_manifest(at["sft"])["metrics"]["tokens"]
    # A pair's prompt is read once. The bench counts an average pair per row of a step.
    trained = read_manifest(at["dpo"])["metrics"]["tokens"]
    assert stage_flops[2].tokens == pytest.approx(trained, rel=0.02)
    assert all(work.operations > work.tokens for work in stage_flops)


@pytest.mark.parametrize("name", bakeoff.ARMS)
def test_an_arm_of_the_bake_off_differs_in_what_it_states_alone(name: str) -> None:
    assert bakeoff.undeclared_differences(name) == set()


def test_an_arm_that_differs_in_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SimPO did, whose settings changed the loss's weights, too."""
    other = replace(bakeoff.ARMS["kto"], overrides=("align=kto", "precision=bf16"))
    monkeypatch.setitem(bakeoff.ARMS, "kto", other)
    assert "dpo.precision" in bakeoff.undeclared_differences("kto")
