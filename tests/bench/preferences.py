"""Measure the cost of preferences before a first step: `python -m tests.bench.preferences [FEW MANY [STAGE …]]`.

Comparisons of AlpacaEval's answers, in the columns of UltraFeedback binarized (prompt, chosen and rejected as turns),
repeated under other first words: through `label=dataset`, `pairs` and `unpaired`, and what `reference`, `dpo` and
`reward` do before they load or train a model, with the embedded model's tokenizer. Every stage runs in a process of
its own, for FEW rows (2,000) and for MANY (8,000). Tells by how many bytes of the largest memory and by how many
CPU-microseconds a row more costs, and what that comes to for 60,000 rows and 270,000. A table is written and read by
groups of 10,000 records, which are in memory: what grows beyond them shows only where FEW is more than that.
"""

import gzip
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from itertools import cycle, islice
from multiprocessing import get_context, set_forkserver_preload
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from stages.store.records import (
    Pair,
    PairLogProbs,
    save,
    stream,
)
from tests.bench import chains
from tests.helpers import DATA, ROOT, settings
from tests.rows import work

LONG = 1_500  # characters of two answers: those of UltraFeedback are longer than most here
SIZES = (60_000, 270_000)  # rows of Zephyr's preferences, and of Tülu 3's
OPTIONS = (
    "recipe=tiny",
    "dpo.max_length=4096",
    "reward.max_length=4096",
    "pairs.validation_fraction=0.02",
)


class Cost(NamedTuple):
    processor: float  # seconds
    memory: int  # bytes


class Begun(Exception):
    """A stage has come to where a model is loaded or trained."""


def begun(*_: Any, **__: Any) -> Any:
    raise Begun


def comparisons() -> list[dict[str, Any]]:
    with gzip.open(
        DATA / "preferences" / "alpaca_eval_candidates_shared.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        rows = [json.loads(line) for line in file]
    kept_rows = []
    for row in rows:
        for other in row["candidates"]:
            both = row["reference_output"], other["output"]
            chosen, rejected = both if other["gpt4_vs_reference"] == "reference" else both[::-1]
            if len(chosen + rejected) > LONG:
                kept_rows.append(
                    {"prompt": row["instruction"], "chosen": chosen, "rejected": rejected}
                )
    return kept_rows


def repeated(count: int) -> Iterator[dict[str, Any]]:
    for i, row in enumerate(islice(cycle(comparisons()), count)):
        yield {**row, "prompt": f"Request {i}: {row['prompt']}"}


def write(file: Path, count: int) -> None:
    """The file that `label=dataset` reads."""
    with open(file, "w", encoding="utf-8") as lines:
        for row in repeated(count):
            request = {"role": "user", "content": row["prompt"]}
            sides = {
                s: [request, {"role": "assistant", "content": row[s]}]
                for s in ("chosen", "rejected")
            }
            lines.write(json.dumps({"prompt": row["prompt"], **sides}) + "\n")


def policy(folder: Path) -> None:
    """A model of next to no weights under the contract of the embedded one's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.models import chat_templates
    from stages.models.loading import count_embedding_rows, load_tokenizer
    from stages.pipeline.build import build

    overrides, store, nodes = chains.prepared(
        ROOT / "outputs" / "bench" / "preferences", ["tracker=none"]
    )
    build([nodes["base"]], store, overrides, [])
    base = store.folder(nodes["base"]) / "model"
    contract = chat_templates.establish_contract(
        load_tokenizer(base), settings().sft.template, True, count_embedding_rows(base)
    )
    size = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    ends = {"eos_token_id": contract.stop_ids[0], "pad_token_id": contract.tokenizer.pad_token_id}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=count_embedding_rows(base), **size, **ends)
    ).save_pretrained(folder / "model")
    contract.save(folder / "model")


def reference(folder: Path, pairs: Path, model: Path) -> None:
    """Write random log-probs in the format of the stage `reference`."""
    from stages.models.contract import load_contract
    from stages.models.scoring import tokenize_pair

    contract = load_contract(model / "model")

    def scored() -> Iterator[PairLogProbs]:
        for pair in stream(pairs / "pairs.parquet", Pair):
            p = tokenize_pair(pair, contract)
            chosen, rejected = ([-1.0] * len(ids) for ids in (p.chosen_ids, p.rejected_ids))
            yield replace(p, chosen_logps=chosen, rejected_logps=rejected)

    folder.mkdir(exist_ok=True)
    save(folder / "logprobs.parquet", scored(), PairLogProbs)


def inputs_of(stage: str, folder: Path) -> dict[str, Path]:
    roles = {
        "pairs": {"judged": "label"},
        "unpaired": {"judged": "label"},
        "reference": {"reference": "policy", "pairs": "pairs"},
        "dpo": {"policy": "policy", "pairs": "pairs", "reference": "logprobs"},
        "reward": {"policy": "policy", "pairs": "pairs", "judged": "label"},
    }
    return {
        role: (folder.parent if of == "policy" else folder) / of
        for role, of in roles.get(stage, {}).items()
    }


def cost(stage: str, folder: Path) -> Cost:
    """The cost of a stage, run in the folder of its inputs."""
    files = ("label=dataset", f"label.path={folder / 'rows.jsonl'}") if stage == "label" else ()
    block, module = getattr(settings(*OPTIONS, *files), stage), import_module(f"stages.{stage}")
    training = import_module("stages.training.fit")
    inputs, out = inputs_of(stage, folder), work(folder / stage)
    until = {
        "reference": (module, "load_model"),
        "dpo": (training, "train_with_callbacks"),
        "reward": (training, "train_with_callbacks"),
    }.get(stage)
    with mock.patch.object(*until, begun) if until else nullcontext():
        started = time.process_time()
        with suppress(Begun):
            module.run(block, inputs, out)
        processor = time.process_time() - started
    return Cost(processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in another process, after all imports, and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as process:
        return process.submit(function, *arguments).result()


STAGES = ("label", "pairs", "unpaired", "reference", "dpo", "reward")


def costs(folder: Path, count: int, stages: Sequence[str]) -> dict[str, Cost]:
    """The cost of every stage for this number of rows."""
    folder.mkdir()
    write(folder / "rows.jsonl", count)
    costs = dict[str, Cost]()
    for stage in stages:
        if stage == "dpo":
            alone(reference, folder / "logprobs", folder / "pairs", folder.parent / "policy")
        costs[stage] = stage_cost = alone(cost, stage, folder)
        logging.info(
            "%7d %-12s %6.2f CPU-s %6d MiB",
            count,
            stage,
            stage_cost.processor,
            stage_cost.memory >> 20,
        )
    return costs


def main(few: int, many: int, stages: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(policy, folder / "policy")
        first, last = (costs(folder / str(count), count, stages) for count in (few, many))
        for stage in stages:
            (cpu, memory), (more_cpu, more_memory) = first[stage], last[stage]
            each = (more_memory - memory) / (many - few)
            memory_by_size = ", ".join(
                f"{(more_memory + each * (count - many)) / 2**30:.1f}" for count in SIZES
            )
            row = "%-12s %7.0f bytes %5.0f µs a row; GiB at %s rows: %s"
            logging.info(
                row, stage, each, 1e6 * (more_cpu - cpu) / (many - few), SIZES, memory_by_size
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_forkserver_preload(["stages.dpo", "stages.reward"])
    few, many, *stages = sys.argv[1:] or ("2000", "8000")
    main(int(few), int(many), stages or STAGES)
