"""Stage `examine`: what is wrong with a model that was trained elsewhere? Beside the model that it started from.

It compares the files of both (template, stops, weights, adapter), reads the preferences' answers with both, shows
preferences token by token as either reads them, and looks at the evaluation's results. Nothing is trained."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.installation import program
from stages.config.override_text import overrides
from stages.evaluation.results import read_results
from stages.extras.examine import Examine
from stages.extras.examine.differences import load_differences
from stages.extras.examine.findings import training_files
from stages.extras.examine.findings.answer_readings import Model, Reader, readings_of
from stages.extras.examine.findings.behaviour import figures_of
from stages.extras.examine.findings.faults import examine
from stages.extras.examine.findings.sides import Examined, Side
from stages.extras.examine.findings.weights import update_figures
from stages.extras.examine.folders.difference import Level, Row
from stages.models.token_rows import TokenRow, row_in_words, token_row
from stages.store import safe_files
from stages.store.manifest import manifest_of
from stages.store.records import Candidate, Pair, load
from stages.store.workspace import StageDir

KEY = "examine.model"


def run(cfg: Examine, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `examination.json`: findings, facts of both models side by side, and rows token by token."""
    results = read_results(inputs["eval"])
    titles = results.models
    before = read_side(titles["sft"], inputs["base"], inputs["sft"])
    before.place = str(cfg.before)
    before.answers = own_answers(inputs, "sft")
    after = read_side(titles["policy"], inputs["found"], inputs["given"])
    after.place = str(cfg.model)
    after.answers = own_answers(inputs, "policy")
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    adapter = inputs["found"] / "adapter"
    beside = training_files.folders_of(after.place, KEY)
    folders = load_differences(inputs["diff"])
    found = Examined(
        before,
        after,
        pairs,
        adapter if adapter.exists() else None,
        results,
        readings_of(pairs, opened(cfg, before), opened(cfg, after)),
        training_files.merged_adapter(beside),
        training_files.merged_weights(beside),
        training_files.largest_rate(beside),
        again_command(cfg),
        [Row(**{**row, "level": Level(row["level"])}) for row in folders["rows"]],
        folders["titles"],
    )
    examination = examine(found)
    rows = list[TokenRow]()
    for number, pair in enumerate(pairs[: cfg.rows], 1):
        for side in (before, after):
            row_title = f"preference {number}, {side.title}"
            rows.append(token_row(row_title, side.contract, [*pair.prompt, *pair.chosen]))
    sentence = examination.sentence(after.title, before.title)
    facts = after.facts()
    record = examination.as_record()
    content = {
        "sentence": sentence,
        **record,
        "faults": {finding.title: finding.seen for finding in examination.faults},
        "facts": {
            **{name: [fact, facts[name]] for name, fact in before.facts().items()},
            **figures_of(found),
            **update_figures(found),
        },
        "titles": [before.title, after.title],
        "rows": [vars(row) for row in rows],
    }
    safe_files.write(out / "examination.json", json.dumps(content, indent=1, ensure_ascii=False))
    for row in rows:
        out.inform(row_in_words(row))
    for finding in examination.findings:
        if finding.key:  # the comparison of the folders has logged it
            continue
        tell = out.warn if finding.is_fault else out.inform
        tell(finding.clause)
    return {
        "verdict": record["verdict"],
        "faults": [finding.title for finding in examination.faults],
        "certain": [finding.title for finding in examination.faults if finding.certain],
        "findings": record["findings"],
        "checks": record["checks"],
        "summary": sentence,
    }


def read_side(title: str, came: Path, published: Path) -> Side:
    manifest = manifest_of(came)
    stored = manifest["metrics"].get("stored", "")
    return Side(title, came / "model", published / "model", stored, manifest["warnings"])


def opened(cfg: Examine, side: Side) -> Model:
    return Model(
        side.published,
        side.contract,
        partial(Reader, cfg.runtime.device, cfg.precision, side.title),
    )


def own_answers(inputs: Mapping[str, Path], role: str) -> dict[str, Candidate]:
    """Return a model's own answers to the prompts of the preferences, by prompt; {} if it answered none."""
    folder = inputs.get(f"answer_held_out_{role}")
    if folder is None:
        return {}
    return {answer.prompt_id: answer for answer in load(folder / "answers.parquet", Candidate)}


def again_command(cfg: Examine) -> str:
    """Return the beginning of the command that examines the same two models."""
    models = overrides({KEY: cfg.model, "examine.before": cfg.before})
    return f"{' '.join(program())} stage=examine {models}"
