"""Stage `data`: examples in four splits (sft, preference, validation, test) that share no prompt.

Knows no model. A prompt belongs to the split that took it first, and they take in this order: generated tests, the
other generated splits, then the sources as they are listed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.choices import Split
from stages.config.errors import UserError, nearest
from stages.config.schema import DEFAULT_SHARES, Data, Own, Source
from stages.formats.format import Said
from stages.formats.layout import Wanted
from stages.formats.row import BadRow
from stages.formats.sources import Found, convert, quarantine, tell_unused
from stages.formats.turns import message, split_off_answer, text
from stages.store import parts
from stages.store.records import Check, Example, Message, content_id, prompt_id, save
from stages.store.work import Work
from stages.tasks import open_ended
from stages.tasks.checks import known_checks, share_passed
from stages.tasks.generate import Family, apart, generate

NEED_AN_ANSWER = ("sft", "validation")


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
    taken = {example.id: example.split for example in examples}
    quarantined = dropped = left_out = 0
    told = list[str]()
    for i, source in enumerate(cfg.sources):
        with parts.told(cfg.own, "data.own", out.path):
            found = read(source, cfg.key(i), own)
        told += found.told
        for line in found.told:
            out.say(f"{cfg.key(i).removesuffix('.path')}: {line}")
        quarantine(found.bad, found.rows, cfg.max_bad, out)
        if not found.made:
            raise UserError(
                f"{cfg.key(i)}={source.path}: none of its rows can be used, or its splits leave all of them out."
            )
        tell_unused(source.path, [*found.unused], out)
        left_out += found.left_out
        quarantined += len(found.bad)
        drawn = sorted(found.made, key=lambda e: content_id(e.id)) if source.rows else found.made
        fresh, passed_over = admit(drawn, taken, source.rows or len(drawn))
        if passed_over:
            again = " (it is listed before)" if same_place(source) in map(same_place, cfg.sources[:i]) else ""
            out.warn(
                f"{cfg.key(i)}={source.path}{again}: {passed_over} of {len(drawn)} rows are left out, because their "
                "prompt came before"
            )
        dropped += passed_over
        examples += fresh
    save(out / "examples.parquet", examples, Example)
    counts = Counter(e.split for e in examples)
    return {
        "examples": dict(counts),
        "tasks": len({e.task for e in examples if e.checks}),
        "quarantined": quarantined,
        "duplicates_dropped": dropped,
        "left_out": left_out,
        "read": told,
        "summary": ", ".join(f"{counts[split]} {split}" for split in Split)
        + (f"; {quarantined} rows in quarantine.jsonl" if quarantined else "")
        + (f"; {dropped} copies left out" if dropped else "")
        + (f"; {left_out} rows left out by their splits or labels" if left_out else ""),
    }


def same_place(source: Source) -> tuple[str, ...]:
    """What two sources have in common that read the same rows."""
    path = Path(source.path).expanduser()
    return (str(path.resolve()) if path.exists() else source.path, str(source.revision), source.hub_split)


def own_part(own: Own, out: Work) -> tuple[dict[str, Family], Callable[[Any], Said] | None]:
    """The user's task families, or the function of the user's that says what a row says, as `own` names one.

    Raises:
        UserError: where it names neither.
    """
    if not own:
        return {}, None
    with apart() as families:
        found = parts.load(own, "data.own", out.path)
    if own.name in families or not callable(found):
        if own.options or own.name not in families:
            raise UserError(
                f"data.own.name={own.name} must be a task family, without options, or a function of a row."
            )
        return families, None
    parts.fitting(own, "data.own", found, {})

    def said(row: Any) -> Said:
        given = found(row, **own.options)
        turns, answer = given if isinstance(given, tuple) and len(given) == 2 else (None, None)
        if not isinstance(turns, list):
            raise UserError(f"data.own: {own.name} must give (messages, answer or None), and gave {given!r:.80}.")
        if not turns:  # plain text
            return Said([], [text(answer, "")])
        last = [] if answer is None else [{"role": "assistant", "content": text(answer, "answer")}]
        messages, reply = split_off_answer([message(turn, "messages") for turn in turns] + last)
        return Said(messages, [] if reply is None else [reply])

    return {}, said


def sound(examples: list[Example]) -> None:
    """Raise UserError for a task of the user's whose reference answer does not pass its own checks."""
    for e in examples:
        if unknown := [check.kind for check in e.checks if check.kind not in known_checks()]:
            raise UserError(f"{e.task}: {unknown[0]!r} is no kind of check.{nearest(unknown[0], known_checks())}")
        if not e.checks or not e.reference or share_passed(e.checks, e.reference) < 1:
            raise UserError(f"{e.task}: the reference {e.reference!r:.80} has no checks, or does not pass them all.")


def read(source: Source, key: str, own: Callable[[Any], Said] | None) -> Found[Example]:
    """The examples of a source, its unusable rows, and what was read as what."""
    shares = source.splits or DEFAULT_SHARES
    name = Path(source.path).name

    def example(said: Said) -> Example | None:
        messages, answer = said.messages, said.answers[0] if len(said.answers) == 1 else None
        split = split_of(messages, answer, shares)
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
        if split is None:
            return None
        checks = verifiable(source.check, answer)
        return Example(prompt_of(messages, answer), messages, answer, name, name, split, kind=name, checks=checks)

    answered = source.check or any(shares.get(split) for split in NEED_AN_ANSWER)
    return convert(source, key, example, Wanted.answers if answered else Wanted.prompts, own)


def verifiable(check: str | None, answer: str | None) -> list[Check]:
    """The check that a source names, against its own answer."""
    return [Check(check, {"text": answer})] if check and answer is not None else []


def admit(found: list[Example], taken: dict[str, str], limit: int) -> tuple[list[Example], int]:
    """The first `limit` examples whose prompt no split holds yet, and how many were passed over to find them. Only in
    `sft` may a prompt come again, with another answer."""
    fresh: list[Example] = []
    for passed, example in enumerate(found):
        if len(fresh) == limit:
            return fresh, passed - limit
        if example.id in taken:
            if taken[example.id] != "sft" or example.split != "sft":
                continue
            example.id = content_id(example.id, example.reference)
            if example.id in taken:
                continue
        taken[example.id] = example.split
        # Remember the prompt with its first answer too, so that a second copy of that answer is passed over.
        taken[content_id(example.id, example.reference)] = example.split
        fresh.append(example)
    return fresh, len(found) - len(fresh)


def prompt_of(messages: list[Message], answer: str | None) -> str:
    """The id of a row's prompt; of plain text, which has no prompt, the id of the text."""
    return prompt_id(messages or [{"role": "assistant", "content": answer or ""}])


def split_of(messages: list[Message], answer: str | None, shares: dict[str, float]) -> str | None:
    """The split that a prompt's hash falls into, or None where the shares leave it out."""
    place = int(prompt_of(messages, answer)[:8], 16) / 2**32
    for split, share in sorted(shares.items()):
        if place < share:
            return split
        place -= share
    return None
