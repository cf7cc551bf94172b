"""Stage `examine`: what is wrong with a model that was trained elsewhere? Beside the model that it started from.

It compares the files of both (template, stops, weights, adapter), shows preferences token by token as either reads
them, and looks at the evaluation's results. Nothing is trained."""

import json
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.config.schema import Examine
from stages.evaluation.examined.faults import find_faults
from stages.evaluation.examined.sides import Examined, Side
from stages.evaluation.learnt import token_log_probs
from stages.evaluation.results import read_results
from stages.models import scoring
from stages.models.token_rows import TokenRow, row_in_words, token_row
from stages.store import safe_files
from stages.store.manifest import manifest_of
from stages.store.records import Pair, load
from stages.store.workspace import StageDir

MOST_ENDS = 200  # pairs whose end of turn is scored


def run(cfg: Examine, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `examination.json`: faults, facts of both models side by side, and rows token by token."""
    results = read_results(inputs["eval"])
    titles = results.models
    before = read_side(titles["sft"], inputs["base"], inputs["sft"])
    after = read_side(titles["policy"], inputs["found"], inputs["given"])
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    adapter = inputs["found"] / "adapter"
    found = Examined(
        before,
        after,
        pairs,
        adapter if adapter.exists() else None,
        results,
        end_of_turn_log_probs(cfg, after, pairs[:MOST_ENDS]),
    )
    faults = find_faults(found)
    rows = list[TokenRow]()
    for number, pair in enumerate(pairs[: cfg.rows], 1):
        for side in (before, after):
            row_title = f"preference {number}, {side.title}"
            rows.append(token_row(row_title, side.contract, [*pair.prompt, *pair.chosen]))
    sentence = f"No fault was found in {after.title} beside {before.title}"
    if faults:
        sentence = f"{len(faults)} of the checks found a fault in {after.title}: {next(iter(faults.values()))}"
    facts = after.facts()
    content = {
        "sentence": sentence,
        "faults": faults,
        "facts": {name: [fact, facts[name]] for name, fact in before.facts().items()},
        "titles": [before.title, after.title],
        "rows": [vars(row) for row in rows],
    }
    safe_files.write(out / "examination.json", json.dumps(content, indent=1, ensure_ascii=False))
    for row in rows:
        out.inform(row_in_words(row))
    for clause in faults.values():
        out.warn(clause)
    return {"faults": [*faults], "summary": sentence}


def read_side(title: str, came: Path, published: Path) -> Side:
    manifest = manifest_of(came)
    stored = manifest["metrics"].get("stored", "")
    return Side(title, came / "model", published / "model", stored, manifest["warnings"])


def end_of_turn_log_probs(cfg: Examine, side: Side, pairs: list[Pair]) -> list[float]:
    """Return the log-prob of the end of turn after each chosen answer, as the model's own template writes it; [] if the
    template refuses a row."""
    try:
        rows = [scoring.tokenize_pair(pair, side.contract) for pair in pairs]
    except UserError:  # its template refuses a row
        return []
    end_log_probs = [0.0] * len(rows)
    title = f"ends of turn {side.title}"
    scored = token_log_probs(cfg.runtime.device, cfg.precision, title, side.published, rows)
    for number, chosen_log_probs, _ in scored:
        end_log_probs[number] = chosen_log_probs[-1]
    return end_log_probs
