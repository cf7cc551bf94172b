"""What the label page shows as text: judgements that the checks, another order or another judge contradict, and the
closest calls. Chosen by content, which is no choice, and cut where they are long."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from markupsafe import escape

from stages.evaluation.labelling import Call, Labelling
from stages.evaluation.reliability import Key, from_checks, key_of, said
from stages.labelers.verdicts import JudgeVote
from stages.pages.headline import counted
from stages.pages.jury import Votes, VotesByMember
from stages.store.records import Example, Judgement, content_id
from stages.store.sealed_json import WRONG_SHAPE, Damaged

SHOWN = 3  # under a heading
TURNS = 4  # of a conversation, its last ones
ROOM, WORDS = 3000, 300  # bytes of a text as the page has it, and of a judge's words
ORDERS = {"ab": ", A first", "ba": ", B first and called A", "": ""}


class Text(NamedTuple):
    title: str
    text: str
    more: int  # characters that are left out


class Case(NamedTuple):
    """A prompt with one or two of its answers, and what was said of them."""

    turns: list[Text]
    earlier: int  # turns that are left out
    answers: list[Text]
    told: list[str]


def cases(
    folder: Path, labelling: Labelling, votes: Votes, words: VotesByMember, audits: bool
) -> Iterator[tuple[str, list[Case]]]:
    """Headings and what is under each. `votes`: the replies of judges; `words`: what judges or members of an ensemble
    come to; `audits`: whether the checks can contradict the labels."""

    def first(judgements: Iterable[Judgement], known: dict[Key, str]) -> list[Case]:
        drawn = sorted(judgements, key=lambda j: content_id(*key_of(j)))[:SHOWN]
        told = [quotes(votes[key_of(j)]) if votes else named_by(words.get(key_of(j), {})) for j in drawn]
        return [of_judgement(labelling, j, its, known.get(key_of(j))) for j, its in zip(drawn, told, strict=True)]

    known = checked(folder / "audit.jsonl", labelling) if audits else {}
    wrong = [j for j in labelling.given if known.get(key_of(j), said(j)) != said(j)]
    yield f"Against the checks: {len(wrong)} of {counted(len(known), 'audited judgement')}", first(wrong, known)
    turned = [j for j in labelling.preferences if j.order_swapped_agrees is False]
    of = counted(len(labelling.preferences), "comparison")
    yield f"Another choice in the other order: {len(turned)} of {of}", first(turned, known)
    apart = [j for j in labelling.given if len({*words.get(key_of(j), {}).values()} - {None}) > 1]
    of = counted(len(labelling.given), "judgement")
    yield f"{'Judges' if votes else 'Members'} that disagree: {len(apart)} of {of}", first(apart, known)
    ranked = sorted(labelling.calls(), key=lambda c: (c.gap, content_id(c.better.candidate_id, c.worse.candidate_id)))
    yield "The closest calls", [of_call(labelling, call) for call in ranked[:SHOWN]]


def checked(audit: Path, labelling: Labelling) -> dict[Key, str]:
    """What the checks say of the judgements that were set aside, where there are any."""
    if not audit.exists():
        return {}
    try:
        keys = {tuple(json.loads(row)["judged"]) for row in audit.read_text(encoding="utf-8").splitlines()}
    except WRONG_SHAPE as error:
        raise Damaged(audit, error) from error
    aside = [j for j in labelling.given if key_of(j) in keys]
    return from_checks(aside, labelling.prompts, labelling.candidates)


def of_judgement(labelling: Labelling, j: Judgement, lines: Iterable[str], known: str | None) -> Case:
    """A judgement, its candidates named as it names them, what is known, and what was said of it."""
    titles = ("Answer",) if j.candidate_id else ("A", "B")
    answers = [cut(title, labelling.candidates[i].text) for title, i in zip(titles, key_of(j), strict=True)]
    told = [f"judged {f'{j.score:.2f}' if j.preference is None else named(j.preference)}"]
    told += [f"known to be {named(known)}"] if known else []
    return case(labelling.prompts[j.prompt_id], answers, [*told, *lines])


def quotes(judges: Mapping[str, JudgeVote]) -> Iterator[str]:
    """What each judge replied, in each order."""
    for name, voice in judges.items():
        for order, reply in voice.replies.items():
            short = cut("", reply.text if reply else "", WORDS)
            end = reply.finish_reason if reply else "stop"
            ended = "" if end == "stop" else f" ({cut('', end, WORDS).text})"
            yield f"{name}{ORDERS[order]}: {short.text or 'nothing'}{' …' if short.more else ''}{ended}"


def named_by(words: Mapping[str, str | int | None]) -> Iterator[str]:
    """What each member said: `verifier: A better`."""
    return (f"{name}: {cut('', named(str(word)), WORDS).text}" for name, word in words.items())


def named(word: str) -> str:
    """`A better`, `a tie`, `good`"""
    return f"{word.upper()} better" if word in ("a", "b") else "a tie" if word == "tie" else word


def of_call(labelling: Labelling, call: Call) -> Case:
    titles = ("Better", "Worse") if call.gap else ("A", "B")
    answers = [cut(title, of.text) for title, of in zip(titles, (call.better, call.worse), strict=True)]
    told = f"better by {call.gap:.3g}" if call.gap else "a tie"
    return case(labelling.prompts[call.better.prompt_id], answers, [told])


def case(prompt: Example, answers: list[Text], told: list[str]) -> Case:
    turns = [cut(message["role"], message["content"]) for message in prompt.messages[-TURNS:]]
    return Case(turns, len(prompt.messages) - len(turns), answers, told)


def cut(title: str, text: str, room: int = ROOM) -> Text:
    """As much of a text as takes so many bytes on the page, and how many characters that leaves out."""
    for i, character in enumerate(text):
        room -= len(str(escape(character)).encode())
        if room < 0:
            return Text(title, text[:i], len(text) - i)
    return Text(title, text, 0)
