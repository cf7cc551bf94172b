"""Build pairs of small judged pools."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages import pairs
from stages.config.blocks.pairs import Pairs
from stages.store.records import Pair, load
from tests.helpers import settings
from tests.rows import candidate, work


def block(**changes: Any) -> Pairs:
    return replace(settings("recipe=tiny").pairs, validation_fraction=0.0, **changes)


def build_pairs(
    folder: Path, cfg: Pairs, judged: Path
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    out = work(folder)
    metrics = pairs.run(cfg, {"judged": judged}, out)
    stored = load(out / "pairs.parquet", Pair)
    return [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in stored], metrics


SCORED = {
    "q": [(candidate("q", t), s) for t, s in (("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", 0.5))]
}


LEVELS = (("a", 1.0), ("b", 0.5), ("c", 0.0))
