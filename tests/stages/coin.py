"""DPO on pairs that a coin has turned, which must not help."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from stages import answer, dpo
from stages.config.schema import Config
from stages.eval import run as evaluate
from stages.models.contract import Contract
from stages.models.scoring import tokens_digest
from stages.store.records import Pair, PairLogProbs, load, save
from tests.rows import work


def tossed(
    cfg: Config, inputs: dict[str, Path], pairs: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The results of training on such pairs. `inputs`: those of the evaluation of the chain they came from."""
    for name in ("dpo", "answer", "eval"):
        (folder / name).mkdir()
    dpo.run(cfg.dpo, {"policy": inputs["sft"], **pairs}, work(folder / "dpo"))
    answer_inputs = {"model": folder / "dpo", "data": inputs["data"]}
    answer.run(cfg.answer, answer_inputs, work(folder / "answer"))
    shutil.copy(
        inputs["policy"] / "manifest.json", folder / "dpo"
    )  # the evaluation reads its stage
    compared = inputs | {"policy": folder / "dpo", "answer_policy": folder / "answer"}
    evaluate(cfg.eval, compared, work(folder / "eval"))
    return json.loads((folder / "eval" / "results.json").read_text())


def turned(
    pairs: Path, reference: Path, contract: Contract, folder: Path, seed: int
) -> dict[str, Path]:
    """Copies of a pairs and a reference node in which a coin has made chosen and rejected change places."""
    coin = random.Random(seed)
    copies = {"pairs": folder / "pairs", "reference": folder / "reference"}
    shutil.copytree(pairs, copies["pairs"])
    shutil.copytree(reference, copies["reference"])
    scored = {p.id: p for p in load(reference / "logprobs.parquet", PairLogProbs)}
    original_pairs = load(pairs / "pairs.parquet", Pair)
    for pair in original_pairs:
        if coin.random() < 0.5:
            swap(pair, "", "_token_ids", "_tokenizer")
            swap(scored[pair.id], "_ids", "_logps")
            scored[pair.id].digest = tokens_digest(pair, scored[pair.id], contract)
    save(copies["pairs"] / "pairs.parquet", original_pairs, Pair)
    save(copies["reference"] / "logprobs.parquet", list(scored.values()), PairLogProbs)
    return copies


def swap(record: Pair | PairLogProbs, *fields: str) -> None:
    """Let the fields of the chosen and the rejected side change places."""
    for field in fields:
        chosen = getattr(record, f"chosen{field}")
        setattr(record, f"chosen{field}", getattr(record, f"rejected{field}"))
        setattr(record, f"rejected{field}", chosen)
