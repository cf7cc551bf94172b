"""DPO on pairs that a coin has turned, which must not help: `python -m tests.bench.coin [OUTPUTS]`.

Takes SFT, pairs and answers of the chain that OUTPUTS was last used for, and writes nothing into the store's nodes.
"""

import json
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages import answer, dpo
from stages.cli import compose
from stages.config.installation import ROOT
from stages.config.schema import Config
from stages.eval import run as evaluate
from stages.store.manifest import read_manifest
from stages.store.records import Pair, PairLogProbs, load, save
from tests.helpers import settings
from tests.rows import work


def main(outputs: Path) -> None:
    cfg = settings(f"outputs={outputs}")
    compose.set_cache_folders(outputs)
    compose.resolve_precision(cfg)
    manifest = read_manifest((outputs / "latest/eval").resolve())
    assert manifest is not None
    inputs = {
        role: outputs / i["stage"] / i["fingerprint"] for role, i in manifest["inputs"].items()
    }
    cfg.eval.models = manifest["config"]["models"]
    latest = {stage: (outputs / "latest" / stage).resolve() for stage in ("pairs", "reference")}
    with tempfile.TemporaryDirectory(dir=outputs / "cache") as scratch:
        folder = Path(scratch)
        results = tossed(
            cfg, inputs, turned(latest["pairs"], latest["reference"], folder, seed=0), folder
        )
    logging.info(
        "%s KL %.3f nats per token.", results["verdict"], results["kl"]["policy"]["per_token"]
    )


def tossed(
    cfg: Config, inputs: dict[str, Path], pairs: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The results of training on such pairs. `inputs`: those of the evaluation of the chain they came from."""
    for name in ("dpo", "answer", "eval"):
        (folder / name).mkdir()
    dpo.run(cfg.dpo, {"policy": inputs["sft"], **pairs}, work(folder / "dpo"))
    answer_inputs = {"model": folder / "dpo", "data": inputs["data"]}
    answer.run(cfg.answer, answer_inputs, work(folder / "answer"))
    compared = inputs | {"policy": folder / "dpo", "answer_policy": folder / "answer"}
    evaluate(cfg.eval, compared, work(folder / "eval"))
    return json.loads((folder / "eval" / "results.json").read_text())


def turned(pairs: Path, reference: Path, folder: Path, seed: int) -> dict[str, Path]:
    """Copies of a pairs and a reference node in which a coin has made chosen and rejected change places."""
    coin = random.Random(seed)
    copies = {
        p: shutil.copytree(source, folder / p)
        for p, source in (("pairs", pairs), ("reference", reference))
    }
    original_pairs = load(pairs / "pairs.parquet", Pair)
    scored = {p.id: p for p in load(reference / "logprobs.parquet", PairLogProbs)}
    for pair in original_pairs:
        if coin.random() < 0.5:
            s = scored[pair.id]
            pair.chosen, pair.rejected = pair.rejected, pair.chosen
            pair.chosen_token_ids, pair.rejected_token_ids = (
                pair.rejected_token_ids,
                pair.chosen_token_ids,
            )
            pair.chosen_tokenizer, pair.rejected_tokenizer = (
                pair.rejected_tokenizer,
                pair.chosen_tokenizer,
            )
            s.chosen_ids, s.rejected_ids = s.rejected_ids, s.chosen_ids
            s.chosen_logps, s.rejected_logps = s.rejected_logps, s.chosen_logps
    save(copies["pairs"] / "pairs.parquet", original_pairs, Pair)
    save(copies["reference"] / "logprobs.parquet", list(scored.values()), PairLogProbs)
    return copies


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "outputs"))
