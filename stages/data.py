"""Stage `data`: examples in four splits (sft, preference, validation, test) that share no prompt.

Knows no model. A prompt belongs to the split that took it first, and they take in this order: generated tests, the
other generated splits, then the sources as they are listed.
"""

import heapq
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.choices import Split
from stages.config.errors import UserError, nearest
from stages.config.schema import Data, Source
from stages.curation.audit import Gate
from stages.curation.own import own_part
from stages.formats.format import Said
from stages.formats.row import BadRow
from stages.formats.sources import Found, convert, keep_apart, quarantine, tell_unused
from stages.formats.splits import NEED_AN_ANSWER, prompt_of, split_of, wanted
from stages.store import parts
from stages.store.licences import Licences
from stages.store.records import Check, Example, content_id, save
from stages.store.work import Work
from stages.tasks import open_ended
from stages.tasks.checks import known_checks, share_passed
from stages.tasks.generate import generate


def run(cfg: Data, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `examples.parquet`, and `quarantine.jsonl` where rows could not be used.

    Raises:
        UserError: for a source that holds nothing, or more unusable rows than `max_bad` allows.
    """
    settings = asdict(cfg.tasks) if cfg.tasks else None
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    families, own = own_part(cfg.own, out)
    with parts.told(cfg.own, "data.own", out.path):
        examples = list[Example]()
        if settings:
            seed = settings.pop("seed")
            examples += generate(seed, settings, settings.pop("families"), families)
            examples += open_ended.generate(seed, settings)
        sound([e for e in examples if e.task in families])
    passes = Gate(cfg.audit, cfg.form)
    taken = {example.id: example.split for example in examples}
    counts, tasks, sums, read = Counter[str](), set[str](), Counter[str](), list[str]()
    licences = Licences()

    def everything() -> Iterator[Example]:
        yield from examples
        for i in range(len(cfg.sources)):
            with parts.told(cfg.own, "data.own", out.path):
                yield from of_source(cfg, i, own, passes, taken, sums, read, out)

    def counted() -> Iterator[Example]:
        for example in everything():
            counts[example.split] += 1
            licences.count(example)
            tasks.update([example.task] if example.checks else [])
            yield example

    save(out / "examples.parquet", counted(), Example)
    said = {
        "quarantined": "rows in quarantine.jsonl",
        "duplicates_dropped": "copies left out",
        "left_out": "rows left out by their splits, labels or weights",
    }
    if cfg.audit.actions:
        said["unwanted"] = "rows taken out by data.audit"
    return {
        "examples": dict(counts),
        "tasks": len(tasks),
        **{name: sums[name] for name in said},
        **passes.shape.metrics(),
        **licences.metrics(),
        "read": read,
        "summary": ", ".join(f"{counts[split]} {split}" for split in Split)
        + "".join(f"; {sums[name]} {what}" for name, what in said.items() if sums[name])
        + (f"; {shaped}" if (shaped := passes.shape.told()) else ""),
    }


def of_source(
    cfg: Data,
    i: int,
    own: Callable[[Any], Said] | None,
    passes: Gate,
    taken: dict[str, str],
    sums: Counter[str],
    read: list[str],
    out: Work,
) -> Iterator[Example]:
    """The examples of a source whose prompts no split holds yet. What else there was is told, and added up.

    Raises:
        UserError: where it holds nothing, or too many unusable rows.
    """
    source, key, found = cfg.sources[i], cfg.key(i), Found()
    yield from drawn(converted(source, key, own, passes, found), source.rows, taken, sums)
    for line in found.told:
        out.say(f"{key.removesuffix('.path')}: {line}")
    quarantine(found.bad, found.rows, cfg.max_bad, out)
    keep_apart(found.apart, out)
    if not found.made:
        raise UserError(f"{key}={source.path}: none of its rows can be used, or its splits leave all of them out.")
    tell_unused(source.path, [*found.unused], out)
    read += found.told
    passed_over = sums.pop("passed_over", 0)
    if passed_over:
        again = " (it is listed before)" if same_place(source) in map(same_place, cfg.sources[:i]) else ""
        out.warn(
            f"{key}={source.path}{again}: {passed_over} of {found.made} rows are left out, because their prompt came "
            "before"
        )
    sums.update(quarantined=len(found.bad), duplicates_dropped=passed_over, left_out=found.left_out)
    if taken_out := ", ".join(f"{count} {code}" for code, count in found.unwanted.most_common()):
        out.say(f"{key.removesuffix('.path')}: taken out by data.audit: {taken_out}")
    sums["unwanted"] += found.unwanted.total()


def same_place(source: Source) -> tuple[str, ...]:
    """What two sources have in common that read the same rows."""
    path = Path(source.path).expanduser()
    return (str(path.resolve()) if path.exists() else source.path, str(source.revision), source.hub_split)


def sound(examples: list[Example]) -> None:
    """Raise UserError for a task of the user's whose reference answer does not pass its own checks."""
    for e in examples:
        if unknown := [check.kind for check in e.checks if check.kind not in known_checks()]:
            raise UserError(f"{e.task}: {unknown[0]!r} is no kind of check.{nearest(unknown[0], known_checks())}")
        if not e.checks or not e.reference or share_passed(e.checks, e.reference) < 1:
            raise UserError(f"{e.task}: the reference {e.reference!r:.80} has no checks, or does not pass them all.")


def converted(
    source: Source,
    key: str,
    own: Callable[[Any], Said] | None,
    passes: Gate,
    found: Found,
) -> Iterator[Example]:
    """The examples of a source, but for rows that the audit does not let pass."""
    name = Path(source.path).name

    def example(said: Said) -> Example | None:
        said = passes.shape(said)
        messages, answer = said.messages, said.answers[0] if len(said.answers) == 1 else None
        prompt = prompt_of(messages, answer)
        split = split_of(prompt, source)
        if split in NEED_AN_ANSWER and answer is None:
            raise BadRow("", "no assistant turn to learn from")
        if split not in NEED_AN_ANSWER and not messages:
            raise BadRow("text", f"plain text has no prompt for the {split} split")
        if source.check and answer is None:
            raise BadRow("", f"no answer for check={source.check} to compare with")
        if said.scores and not said.scores[0]:  # of one that is a bad answer the prompt is left
            if split in NEED_AN_ANSWER or source.check:
                return None
            answer = None
        if said.trained and not any(said.trained) and split in NEED_AN_ANSWER:
            return None
        if split is None:
            return None
        passes(said, split, found.place)
        checks = verifiable(source.check, answer)
        return Example(
            prompt,
            messages,
            answer,
            name,
            name,
            split,
            kind=name,
            checks=checks,
            trained=said.trained,
            licence=said.licence or source.licence,
            origin=said.origin,
        )

    return convert(source, key, example, wanted(source), found, own)


def verifiable(check: str | None, answer: str | None) -> list[Check]:
    """The check that a source names, against its own answer."""
    return [Check(check, {"text": answer})] if check and answer is not None else []


def drawn(
    examples: Iterator[Example], limit: int | None, taken: dict[str, str], sums: Counter[str]
) -> Iterator[Example]:
    """The examples that are fresh; with a limit so many of them, drawn by their content."""
    known = taken if limit is None else ChainMap({}, taken)

    def fresh() -> Iterator[tuple[str, int, Example]]:
        for n, example in enumerate(examples):
            order = content_id(example.id) if limit else ""
            if is_fresh(example, known):
                yield order, n, example
            else:
                sums["passed_over"] += 1

    if limit is None:
        yield from (example for _, _, example in fresh())
        return
    for _, _, example in heapq.nsmallest(limit, fresh()):
        remember(example, taken)
        yield example


def is_fresh(example: Example, taken: MutableMapping[str, str]) -> bool:
    """Whether no split holds its prompt yet. Only in `sft` may a prompt come again, with another answer: the id is
    then that of both."""
    if example.id in taken:
        if taken[example.id] != "sft" or example.split != "sft":
            return False
        example.id = content_id(example.id, example.reference)
        if example.id in taken:
            return False
    remember(example, taken)
    return True


def remember(example: Example, taken: MutableMapping[str, str]) -> None:
    """Take a prompt, and it with its first answer too, so that a second copy of that answer is passed over."""
    taken[example.id] = taken[content_id(example.id, example.reference)] = example.split
