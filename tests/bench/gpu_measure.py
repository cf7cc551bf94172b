"""Measurements of `gpu_chain`, each in a process of its own."""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.gpu_cells import CHAIN, SIZES, Size
from tests.helpers import ROOT, TINY, settings

CANDIDATES = 4
TEMPERATURE = 0.9
Round = dict[str, float]  # see gpu_record.Cell


def prepare(size: Size, work: Path, precision: str, variant: str) -> dict[str, Any]:
    """Write model, pairs and conversations of a shape, if they are missing; shapes of other lengths have the same
    model. Return the rate of this machine's matrix products in the model's layers."""
    from transformers import AutoConfig

    from tests.bench import dpo, mfu

    if not work.exists():
        model = work.parent / "models" / size.model
        part = Path(f"{work}.part")
        if not model.exists():
            save_model(size, Path(f"{model}.part"))
            Path(f"{model}.part").rename(model)
        part.mkdir(parents=True)
        (part / "model").symlink_to(model.resolve())
        rows, *_ = conversations(size, part, precision, packing=False)
        (part / "conversations.json").write_text(json.dumps([*rows.train.dataset]))
        (part / "pairs.json").write_text(
            json.dumps(dpo.prepare(dpo_settings(size, part, precision)))
        )
        part.rename(work)
    rate = mfu.measured_peak(AutoConfig.from_pretrained(work / "model"), precision)
    return {"rate": rate, "source": "measured matrix products"}


def save_model(size: Size, folder: Path) -> None:
    """Write random weights of a shape in bf16, with the embedded model's tokenizer; the tiny shape has its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages import base
    from stages.models.loading import describe_gguf, resolve_device
    from stages.store.source_files import locate

    if size is SIZES["tiny"]:
        _, tokenizer = base.build_random_model(settings(*TINY).model.random_init)
        tokenizer.pad_token = "<|pad|>"
    else:
        gguf = locate(base.DEMO, "model.path")
        assert gguf is not None
        _, tokenizer = describe_gguf(gguf)
    config = AutoConfig.for_model(
        **size.config, max_position_embeddings=max(8192, 2 * size.max_length)
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    torch.manual_seed(0)
    with resolve_device("auto"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure_sft(size: Size, work: Path, precision: str, variant: str) -> Round:
    """The second epoch of SFT. TRL's micro-batches are the largest that fit."""
    if variant == "trl":
        cfg = dpo_settings(size, work, precision)
        return largest_that_fits(size, cfg, lambda: trl_sft(cfg, work / "conversations.json"))
    from stages.config.blocks.arguments import SFTArguments
    from stages.hardware import allocator, machine
    from stages.objectives import sft
    from stages.training.fit import Fit
    from tests.bench import dpo_trainers
    from tests.bench.dpo import Clock

    model = work / "model"
    with tempfile.TemporaryDirectory() as folder, allocator.keep_freed_memory():
        machine.reset_peak_memory()
        packing = variant != "ours_padded"
        rows, contract, block, out = conversations(size, work, precision, packing, Path(folder))
        block.trainer = SFTArguments(**dpo_trainers.OURS[variant], extra={"save_strategy": "no"})
        length = sum(rows.train.lengths) / len(rows.train)
        if packing:
            block.batch_size //= 4
            rows.train.pack(block.max_length, block.batch_size)
        fit = Fit(sft.SupervisedTrainer, block, rows, contract, model, out)
        trainer = fit.build_trainer(sft.trainable_model(model, contract, fit.cfg, fit.args.device))
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        tokens = sum(rows.train.lengths[i] for i in fit.schedule.epoch(1))
    return round_of(trainer, clock, tokens, length)


def round_of(trainer: Any, clock: Any, tokens: int, length: float) -> Round:
    from stages.hardware import machine

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    memory = machine.peak_gpu_memory() or machine.peak_memory()
    figures = {"seconds": clock.epochs[1], "tokens": tokens, "bytes": memory}
    return figures | {"length": length, "loss": losses[-1]}


def conversations(
    size: Size, work: Path, precision: str, packing: bool, folder: Path | None = None
) -> tuple[Any, Any, Any, Any]:
    """Return conversations of digits, each of which is a token, as SFT's rows, with its contract, settings and folder."""
    from stages.models.chat_templates import establish_contract
    from stages.models.loading import count_embedding_rows, load_tokenizer
    from stages.objectives import sft
    from stages.store.records import Example
    from stages.store.workspace import StageDir

    draw = random.Random(0)
    block = settings(f"precision={precision}", *size.overrides, "sft.evaluations=0").sft
    block.packing, block.epochs, block.max_length = packing, 2.0, size.max_length
    block.runtime.micro_batch = "auto"  # the demo's is for a CPU
    block.batch_size = size.batch_size

    def digits():
        return "".join(draw.choices("0123456789", k=round(size.max_length / draw.uniform(6, 16))))

    examples = list[Example]()
    for i in range(size.batch_size * size.steps):
        messages = [{"role": "user", "content": digits()}]
        examples.append(Example(f"{i:016x}", messages, digits(), "bench", "bench", "sft"))
    model = work / "model"
    contract = establish_contract(
        load_tokenizer(model), block.template, True, count_embedding_rows(model)
    )
    out = StageDir(folder or work, lambda metrics, step: None)
    return sft.read_rows(examples, contract, block, out), contract, block, out


def trl_sft(cfg: Any, file: Path) -> Round:
    """The second epoch of SFTTrainer on these token ids and labels, padded. Nothing of the project's is imported that
    changes what TRL does."""
    from tests.bench import dpo_trainers
    from tests.bench.dpo import Clock

    rows = json.loads(file.read_text())
    tokens = sum(len(row["input_ids"]) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainers.trl_sft_trainer(cfg, rows, Path(folder))
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return round_of(trainer, clock, tokens, tokens / len(rows))


def largest_that_fits(size: Size, cfg: Any, measure: Callable[[], Any]) -> Any:
    """Return what is measured with TRL's largest micro-batch that fits: half of it again where memory is short."""
    import torch
    from accelerate.utils import release_memory

    cfg.micro_batch = min(size.micro_batch, size.batch_size)
    while True:
        cfg.tuned_micro_batch = cfg.micro_batch
        try:
            return measure()
        except torch.OutOfMemoryError:
            if cfg.micro_batch == 1:
                raise
        cfg.micro_batch //= 2
        release_memory()


def measure_dpo(size: Size, work: Path, precision: str, variant: str) -> Round:
    """The second epoch of DPO. TRL's micro-batches are the largest that fit."""
    from tests.bench import dpo

    cfg = dpo_settings(size, work, precision)
    file = str(work / "pairs.json")
    figures = largest_that_fits(size, cfg, lambda: dpo.time_epochs(cfg, variant, file))
    return {
        "seconds": figures["seconds"],
        "tokens": figures["tokens"],
        "bytes": figures["memory"],
        "length": figures["tokens"] / cfg.pairs,
        "loss": figures["losses"][-1],
    }


def dpo_settings(size: Size, work: Path, precision: str) -> Any:
    from tests.bench import dpo

    pairs = size.batch_size * size.steps
    cfg = dpo.Settings(str(work / "model"), size.lengths, size.max_length, pairs, size.batch_size)
    cfg.precision, cfg.adapter, cfg.epochs, cfg.our_micro_batch = precision, size.adapter, 2, "auto"
    return cfg


def measure_sample(size: Size, work: Path, precision: str, variant: str) -> Round:
    """Answers of a fixed length to random prompts. vLLM takes most of a GPU's memory, whatever it needs."""
    from stages.config.blocks.runtimes import InferenceRuntime
    from stages.config.choices import Precision
    from stages.samplers.sampler import Decoding, Request
    from tests.bench import sample

    draw = random.Random(0)
    temperatures = [TEMPERATURE] * CANDIDATES
    length = size.max_length // 4
    prompts = [
        [draw.randrange(size.widths.vocabulary) for _ in range(length)] for _ in range(size.prompts)
    ]
    decoding = Decoding(
        temperatures, size.answer, Precision(precision), InferenceRuntime("auto", 512, 64)
    )
    requests = [Request(f"{i:016x}", [], ids, temperatures, 0) for i, ids in enumerate(prompts)]
    figures = sample.timed(variant, work / "model", [], decoding, requests)
    memory = 0.0 if variant == "vllm" else figures["memory"]
    sequence = length + size.answer / 2
    return {
        "seconds": figures["seconds"],
        "tokens": figures["tokens"],
        "bytes": memory,
        "length": sequence,
    }


def measure_grpo(size: Size, work: Path, precision: str, variant: str) -> dict[str, Any]:
    """Four steps of stage=grpo by run.py, whose rollouts a sampler draws, with loading and publishing. The reward is of
    length, since random weights answer nothing right."""
    from tests.bench import chains

    reward = work / "reward.py"
    reward.write_text("def short(completions): return [-len(c[0]['content']) for c in completions]")
    overrides = [
        *("tracker=none", *size.chain, "model=embedded", "sft=none", "template=chatml"),
        f"model.path={(work / 'model').resolve()}",
        *("align=grpo", "data.tasks.preference=16", "grpo.batch_size=4", "grpo.epochs=1"),
        *(f"grpo.max_new_tokens={size.answer}", "grpo.evaluations=0", f"grpo.sampler={variant}"),
        *(f"grpo.adapter={size.adapter}", f"precision={precision}"),
        *("label=own", f"label.own={{file: {reward}, name: short}}"),
        f"outputs={work / variant}",
    ]
    if variant == "vllm":
        python = os.environ.get("PLUMBLINE_VLLM_PYTHON", sys.executable)
        overrides.append(f"grpo.runtime.python={python}")
    command = [sys.executable, "run.py", "stage=grpo", *overrides, "rebuild=grpo"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        return {"empty": (ran.stderr.strip().splitlines() or ["it was not built"])[-1][:300]}
    _, store, nodes = chains.prepared(work / variant, overrides)
    return stage_round([store.find(nodes["grpo"])])


def measure_chain(size: Size, work: Path, precision: str, variant: str) -> dict[str, Any]:
    """Build all stages by run.py. Return a round of each stage, with all its nodes; or why it has none.

    Random weights answer nothing right, so DPO has pairs of its own: reference answers over those of other prompts.
    """
    from stages.store.records import PairLogProbs, load
    from tests.bench import chains
    from tests.bench.memory import planned_bytes

    overrides = [
        "tracker=none",
        *size.chain,
        "model=embedded",
        f"model.path={(work / 'model').resolve()}",
        *size.overrides,
    ]
    overrides += [f"precision={precision}", f"outputs={work / 'outputs'}"]
    pairs = [f"label.path={write_preferences(work / 'preferences.json')}", "label=dataset"]
    rounds = dict[str, Any]()
    for target, more in (("label", []), ("eval", pairs)):
        command = [sys.executable, "run.py", f"stage={target}", *overrides, *more]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        reason = (ran.stderr.strip().splitlines() or ["it was not built"])[-1][:300]
        cfg, store, nodes = chains.prepared(work / "outputs", [*overrides, *more])
        manifests = defaultdict[str, list[Any]](list)
        for node in nodes.values():
            if (manifest := store.find(node)) is not None:
                manifests[node.stage].append(manifest)
        for stage in CHAIN:
            if stage in manifests:
                rounds[stage] = stage_round(manifests[stage])
            else:
                rounds.setdefault(stage, {"empty": reason})
    for stage in ("sft", "dpo"):
        if "seconds" in rounds[stage]:
            rounds[stage]["planned"] = planned_bytes(cfg, store, nodes, stage)
    if "tokens" in rounds["dpo"]:  # the stages' own counts lack prompts, or have them twice
        scored = load(store.folder(nodes["reference"]) / "logprobs.parquet", PairLogProbs)
        trained = store.find(nodes["dpo"])["metrics"]["steps"] * cfg.dpo.batch_size
        tokens = sum(len(p.prompt_ids + p.chosen_ids + p.rejected_ids) for p in scored)
        rounds["reference"]["tokens"] = tokens
        rounds["dpo"]["tokens"] = round(tokens * trained / len(scored))
    return rounds


def stage_round(manifests: list[Any]) -> dict[str, Any]:
    """Add up the nodes of a stage."""
    if any(len(manifest["attempts"]) > 1 for manifest in manifests):
        return {"empty": "it was stopped and resumed, so its time is not known"}
    return {
        "seconds": sum(manifest["wall_seconds"] for manifest in manifests),
        "tokens": sum(manifest["metrics"].get("tokens", 0) for manifest in manifests),
        "bytes": max(
            manifest["peak_gpu_memory"] or manifest["peak_memory"] for manifest in manifests
        ),
        "length": 0,
    }


def write_preferences(file: Path) -> Path:
    """Write generated prompts with the reference answer over another prompt's."""
    from stages.tasks.generator import generate

    rows = list[dict[str, Any]]()
    for better, worse in pairwise(generate(0, {"preference": 256}, families=[])):
        chosen = better.conversation[-1:]
        rejected = worse.conversation[-1:]
        if chosen != rejected:
            rows.append({"prompt": better.messages, "chosen": chosen, "rejected": rejected})
    file.write_text(json.dumps(rows))
    return file


MEASURE: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": prepare,
    "sft": measure_sft,
    "dpo": measure_dpo,
    "sample": measure_sample,
    "grpo": measure_grpo,
    "chain": measure_chain,
}
