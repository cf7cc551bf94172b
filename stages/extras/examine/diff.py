"""Stage `diff`: what differs between the folders of models, key by key? Settings, tokenizer, template and weights.

It reads the files that came, tensor by tensor, and runs no model. So it also reads what no library would load."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.blocks.models import Model
from stages.extras.examine import Folders
from stages.extras.examine.folders.comparison import folder_differences
from stages.extras.examine.folders.difference import Level, Row, table_rows
from stages.extras.examine.folders.model_folder import ModelFolder
from stages.models.hub import download_model
from stages.store import safe_files
from stages.store.plugins import user_path
from stages.store.source_files import locate
from stages.store.workspace import StageDir

log = logging.getLogger(__name__)

MOST_LINES = 10  # of the log; all rows stand on the page


def run(cfg: Folders, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `differences.json`: a row for each key in which a model differs from its start, the worst first."""
    start, *models = [
        open_folder(title, block)
        for title, block in zip(cfg.titles, [cfg.before, *cfg.models], strict=True)
    ]
    rows = table_rows([folder_differences(start, model) for model in models])
    sentence = summary_sentence(rows, cfg.titles)
    content = {"sentence": sentence, "titles": cfg.titles, "rows": [asdict(row) for row in rows]}
    safe_files.write(out / "differences.json", json.dumps(content, indent=1, ensure_ascii=False))
    if out.is_main:
        log_rows(rows, cfg.titles)
    return {
        "faults": [row.key for row in rows if row.level is Level.breaks],
        **{level: count_level(rows, level) for level in Level},
        "summary": sentence,
    }


def open_folder(title: str, block: Model) -> ModelFolder:
    """Return the folder of a model, downloaded if it has a hub id."""
    place = locate(str(block.path), block.key) or download_model(str(block.path), block.revision)
    return ModelFolder(title, place, user_path(block.adapter) if block.adapter else None)


def count_level(rows: list[Row], level: Level) -> int:
    return sum(1 for row in rows if row.level is level)


def summary_sentence(rows: list[Row], titles: list[str]) -> str:
    """Return the number of keys that break answers, of those that change them, and of those that could not be compared."""
    start, *models = titles
    broken, changed = count_level(rows, Level.breaks), count_level(rows, Level.changes)
    unknown = count_level(rows, Level.unknown)
    clauses = list[str]()
    if broken:
        clauses.append(f"{counted(broken)} break{'s' if broken == 1 else ''} answers")
    if changed:
        clauses.append(f"{counted(changed)} change{'s' if changed == 1 else ''} answers")
    if unknown:
        clauses.append(f"{counted(unknown)} could not be compared")
    clause = " and ".join(clauses) or "nothing but trained weights changes answers"
    return f"{', '.join(models)} beside {start}: {clause}"


def counted(keys: int) -> str:
    return "1 key" if keys == 1 else f"{keys} keys"


def log_rows(rows: list[Row], titles: list[str]) -> None:
    """Log the worst rows, those that break or change answers as warnings."""
    for row in rows[:MOST_LINES]:
        if row.level is Level.differs:
            log.info("%s", row.in_words(titles))
        else:
            log.warning("warning: %s", row.in_words(titles))
    if len(rows) > MOST_LINES:
        log.info("%s further keys differ: see the page", len(rows) - MOST_LINES)
