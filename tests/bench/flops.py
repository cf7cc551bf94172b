"""The model's floating-point operations, and how many of them a second this machine could do at best.

Every useful token counts once: two operations per weight of the layers, two per weight of the head where a token is
scored, and attention over the tokens that a token sees. Training is three forwards. Padding, recomputation and what
else an implementation may do are no operations of the model.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.config.blocks.training import DPO, SFT
from stages.models.contract import load_contract
from stages.models.loading import resolve_device
from stages.objectives.sft import read_rows
from stages.store.manifest import read_manifest
from stages.store.records import Example, Pair, PairLogProbs, load, stream
from stages.store.workspace import StageDir

TOKENS = 4096  # in a matrix product that is measured
REPEATS = 7


@dataclass
class Run:
    """Tokens that follow one another: `own` of them, each sees `before` others and its predecessors in the run; the
    head is applied to `scored`."""

    before: int
    own: int
    scored: int


@dataclass
class Computed:
    """The work of a stage: tokens that are not padding, once per pass; operations; training steps."""

    tokens: int
    operations: float
    steps: int


def empty(folder: Path) -> PreTrainedModel:
    """The architecture of a model folder, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def products(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """The linear layers but the head."""
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]


def forward(model: PreTrainedModel, runs: Iterable[Run]) -> float:
    """Operations of one forward over these runs."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    body, head = (
        sum(m.weight.numel() for m in products(model)),
        model.get_output_embeddings().weight.numel(),
    )
    total = 0.0
    for run in runs:
        seen = run.own * run.before + run.own * (run.own + 1) / 2
        total += (
            2 * body * run.own + 2 * head * run.scored + 4 * width * config.num_hidden_layers * seen
        )
    return total


def of_sft(model: PreTrainedModel, cfg: SFT, at: dict[str, Path]) -> Computed:
    """The work of SFT on its conversations, packed or not. `at`: the nodes' folders."""
    contract, metrics = load_contract(at["sft"] / "model"), read_manifest(at["sft"])["metrics"]
    examples = stream(at["data"] / "examples.parquet", Example)
    rows = read_rows(
        examples, contract, cfg, StageDir(at["sft"], lambda metrics, step: None, is_main=False)
    ).train
    runs = [Run(0, *of_row) for of_row in zip(rows.lengths, rows.trained_counts, strict=True)]
    once = sum(run.own for run in runs)
    return work(model, runs, metrics["tokens"] / once, metrics["steps"])


def of_reference(model: PreTrainedModel, at: dict[str, Path]) -> Computed:
    return work(model, of_pairs(load(at["reference"] / "logprobs.parquet", PairLogProbs)), 1.0, 0)


def of_dpo(model: PreTrainedModel, cfg: DPO, at: dict[str, Path]) -> Computed:
    metrics = read_manifest(at["dpo"])["metrics"]
    scored = {p.id: p for p in load(at["reference"] / "logprobs.parquet", PairLogProbs)}
    pairs = [
        p
        for p in load(at["pairs"] / "pairs.parquet", Pair)
        if p.split == "train" and p.id in scored
    ]
    times = metrics["steps"] * cfg.batch_size / len(pairs)
    return work(model, of_pairs([scored[p.id] for p in pairs]), times, metrics["steps"])


def of_pairs(pairs: list[PairLogProbs]) -> list[Run]:
    """A prompt once for its two completions, of which every token is scored."""
    runs = []
    for p in pairs:
        before = len(p.prompt_ids)
        runs.append(Run(0, before, 0))
        runs += [Run(before, len(ids), len(ids)) for ids in (p.chosen_ids, p.rejected_ids)]
    return runs


def work(model: PreTrainedModel, runs: list[Run], times: float, steps: int) -> Computed:
    """The work of several passes over the runs: forward and backward in training steps, else forward alone."""
    total = times * forward(model, runs) * (3 if steps else 1)
    return Computed(round(times * sum(run.own for run in runs)), total, steps)


def peaks(model: PreTrainedModel) -> dict[str, list[float]]:
    """Operations per second, by precision, of the linear layers' matrix products alone: the shapes of one decoder
    layer, one after the other."""
    device = resolve_device("auto")
    linears = products(model)
    shapes = [m.weight.shape for m in linears[: len(linears) // model.config.num_hidden_layers]]
    rates_by_kernel: dict[str, list[float]] = {}
    for precision, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        weights = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
        inputs = {n: torch.randn(TOKENS, n, device=device).to(dtype) for _, n in shapes}
        operations = 2 * TOKENS * sum(weight.numel() for weight in weights)
        rates_by_kernel[precision] = [
            operations / seconds(weights, inputs, device) for _ in range(REPEATS + 1)
        ][1:]
    return rates_by_kernel


def seconds(
    weights: list[torch.Tensor], inputs: dict[int, torch.Tensor], device: torch.device
) -> float:
    started = time.perf_counter()
    for weight in weights:
        linear(inputs[weight.shape[1]], weight)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
