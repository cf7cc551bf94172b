"""Stage `source`: one file, folder, pattern or hub dataset as examples, each in the split of its prompt.

What other sources hold is no matter here: `data` decides which rows stay, and how often they come.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.config.blocks.data import OneSource
from stages.config.errors import UserError
from stages.curation.audit.gate import RowFilter
from stages.curation.user_code import own_part
from stages.formats.column_mapping import wanted_of
from stages.formats.format import ParsedRow
from stages.formats.readers.row import BadRow
from stages.formats.source_reading import ReadReport, convert, keep_apart, quarantine, tell_unused
from stages.store import plugins
from stages.store.records import Check, SourceRow, save
from stages.store.splits import NEED_AN_ANSWER, prompt_of, split_of
from stages.store.workspace import StageDir


def run(cfg: OneSource, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `examples.parquet`, and `quarantine.jsonl` where rows could not be used.

    Raises:
        UserError: for a source that holds nothing, or more unusable rows than `max_bad` allows.
    """
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    found, counts, passes = ReadReport(), Counter[str](), RowFilter(cfg.audit, cfg.form)
    _, own = own_part(cfg.own, out)

    with plugins.told(cfg.own, "data.own", out.path):
        save(out / "examples.parquet", examples(cfg, own, passes, found, counts), SourceRow)
    for line in found.told:
        out.say(f"{cfg.of}: {line}")
    quarantine(found.bad, found.rows, cfg.max_bad, out)
    keep_apart(found.apart, out)
    if not found.made:
        reason = "none of its rows can be used, or its splits leave all of them out"
        raise UserError(f"{cfg.key}={cfg.source.path}: {reason}.")
    tell_unused(cfg.source.path, [*found.unused], out)
    if taken_out := ", ".join(f"{count} {code}" for code, count in found.unwanted.most_common()):
        out.say(f"{cfg.of}: taken out by data.audit: {taken_out}")
    told = {
        "quarantined": (len(found.bad), "rows in quarantine.jsonl"),
        "left_out": (found.left_out, "rows left out by their splits, labels or weights"),
        "unwanted": (found.unwanted.total(), "rows taken out by data.audit"),
    }
    return {
        "rows": found.rows,
        "examples": dict(counts),
        **{name: count for name, (count, _) in told.items()},
        **passes.shape.metrics(),
        "read": found.told,
        "summary": ", ".join(f"{count} {split}" for split, count in counts.items())
        + "".join(f"; {count} {what}" for count, what in told.values() if count)
        + (f"; {shaped}" if (shaped := passes.shape.told()) else ""),
    }


def examples(
    cfg: OneSource, own: Callable[[Any], ParsedRow] | None, passes: RowFilter, found: ReadReport, counts: Counter[str]
) -> Iterator[SourceRow]:
    """The examples of a source, but for rows that the audit does not let pass. `counts` are those of every split."""
    source, name, shares = cfg.source, Path(cfg.source.path).name, cfg.source.shares
    unchecked = list[Check]()  # one for all rows: the fewer objects stay, the less the garbage collector walks through

    def example(said: ParsedRow) -> SourceRow | None:
        said = passes.shape(said)
        messages, answer = said.messages, said.answers[0] if len(said.answers) == 1 else None
        prompt = prompt_of(messages, answer)
        split = split_of(prompt, shares)
        learnt = split in NEED_AN_ANSWER
        if learnt and answer is None:
            raise BadRow("", "no assistant turn to learn from")
        if not learnt and not messages:
            raise BadRow("text", f"plain text has no prompt for the {split} split")
        if source.check and answer is None:
            raise BadRow("", f"no answer for check={source.check} to compare with")
        if said.scores and not said.scores[0]:  # of one that is a bad answer the prompt is left
            if learnt or source.check:
                return None
            answer = None
        if split is None or (learnt and said.trained and not any(said.trained)):
            return None
        file, line = found.at
        passes(said, split, file, line)
        checks = [Check(source.check, {"text": answer})] if source.check and answer is not None else unchecked
        counts[split] += 1
        row = SourceRow(prompt, messages, answer, name, name, split, kind=name, checks=checks, trained=said.trained)
        row.licence, row.origin, row.file, row.line = said.licence or source.licence, said.origin, file, line
        return row

    return convert(source, cfg.key, example, wanted_of(source), found, own)
