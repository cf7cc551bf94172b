"""Examples for the label page: judgements contradicted by the checks, by the other order or by another judge, and the
closest calls. A hash of their content picks them, and long texts are cut."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from markupsafe import escape

from stages.evaluation.labelling import Call, Labelling
from stages.evaluation.reliability import Key, key_of, known_by_checks, word_of
from stages.labelers.verdicts import JudgeVote
from stages.pages.headline import counted
from stages.pages.jury import Votes, VotesByMember
from stages.store.records import Example, Judgement, content_id
from stages.store.sealed_json import WRONG_SHAPE, Damaged

SHOWN = 3  # examples under a heading
TURNS = 4  # last turns of a conversation that are shown
ROOM, WORDS = 3000, 300  # most bytes of a text on the page, and of a judge's reply
ORDERS = {"ab": ", A first", "ba": ", B first and called A", "": ""}


class Text(NamedTuple):
    title: str
    text: str
    more: int  # number of characters left out


class Case(NamedTuple):
    """A prompt with one or two of its answers, and notes on their judgements."""

    turns: list[Text]
    earlier: int  # number of turns left out
    answers: list[Text]
    notes: list[str]


Section = tuple[str, list[Case]]  # a heading with its examples


def cases(folder: Path, labelling: Labelling, votes: Votes, words: VotesByMember, audits: bool) -> Iterator[Section]:
    """Yield each heading with its examples. `votes`: the replies of judges. `words`: the labels of judges or ensemble
    members. `audits`: False if the checks themselves made the labels."""

    def first(judgements: Iterable[Judgement], truth: dict[Key, str]) -> list[Case]:
        drawn = sorted(judgements, key=lambda j: content_id(*key_of(j)))[:SHOWN]
        notes = [vote_lines(votes[key_of(j)]) if votes else member_lines(words.get(key_of(j), {})) for j in drawn]
        noted = zip(drawn, notes, strict=True)
        return [judgement_case(labelling, j, lines, truth.get(key_of(j))) for j, lines in noted]

    truth = read_audit(folder / "audit.jsonl", labelling) if audits else {}
    wrong = [j for j in labelling.valid if truth.get(key_of(j), word_of(j)) != word_of(j)]
    yield (f"Against the checks: {len(wrong)} of {counted(len(truth), 'audited judgement')}", first(wrong, truth))
    turned = [j for j in labelling.preferences if j.order_swapped_agrees is False]
    total = counted(len(labelling.preferences), "comparison")
    yield f"Another choice of a judge in the other order: {len(turned)} of {total}", first(turned, truth)
    differing = [j for j in labelling.valid if len({*words.get(key_of(j), {}).values()} - {None}) > 1]
    total = counted(len(labelling.valid), "judgement")
    yield (f"{'Judges' if votes else 'Members'} that disagree: {len(differing)} of {total}", first(differing, truth))
    ranked = sorted(labelling.calls(), key=lambda c: (c.gap, content_id(c.better.candidate_id, c.worse.candidate_id)))
    yield "The closest calls", [call_case(labelling, call) for call in ranked[:SHOWN]]


def read_audit(audit: Path, labelling: Labelling) -> dict[Key, str]:
    """Return the checks' labels of the audited judgements; empty without an audit."""
    if not audit.exists():
        return {}
    try:
        keys = {tuple(json.loads(row)["judged"]) for row in audit.read_bytes().splitlines()}
    except WRONG_SHAPE as error:
        raise Damaged(audit, error) from error
    return known_by_checks([j for j in labelling.valid if key_of(j) in keys], labelling.prompts, labelling.candidates)


def judgement_case(labelling: Labelling, j: Judgement, lines: Iterable[str], known_word: str | None) -> Case:
    """Show a judgement with its candidates, the known label, and the `lines` of judges or members."""
    titles = ("Answer",) if j.candidate_id else ("A", "B")
    answers = [cut(title, labelling.candidates[i].text) for title, i in zip(titles, key_of(j), strict=True)]
    notes = [f"judged {f'{j.score:.2f}' if j.preference is None else word_title(j.preference)}"]
    notes += [f"known to be {word_title(known_word)}"] if known_word else []
    return case(labelling.prompts[j.prompt_id], answers, [*notes, *lines])


def vote_lines(judges: Mapping[str, JudgeVote]) -> Iterator[str]:
    """Yield a line for each judge's reply in each order."""
    for name, vote in judges.items():
        for order, reply in vote.replies.items():
            short = cut("", reply.text if reply else "", WORDS)
            end = reply.finish_reason if reply else "stop"
            ended = "" if end == "stop" else f" ({cut('', end, WORDS).text})"
            yield f"{name}{ORDERS[order]}: {short.text or 'nothing'}{' …' if short.more else ''}{ended}"


def member_lines(words: Mapping[str, str | int | None]) -> Iterator[str]:
    """Yield a line for each member's label: `verifier: A better`."""
    return (f"{name}: {cut('', word_title(str(word)), WORDS).text}" for name, word in words.items())


def word_title(word: str) -> str:
    """Return a label in words: `A better`, `a tie`, `good`."""
    return f"{word.upper()} better" if word in ("a", "b") else "a tie" if word == "tie" else word


def call_case(labelling: Labelling, call: Call) -> Case:
    titles = ("Better", "Worse") if call.gap else ("A", "B")
    answers = [cut(title, candidate.text) for title, candidate in zip(titles, (call.better, call.worse), strict=True)]
    note = f"better by {call.gap:.3g}" if call.gap else "a tie"
    return case(labelling.prompts[call.better.prompt_id], answers, [note])


def case(prompt: Example, answers: list[Text], notes: list[str]) -> Case:
    turns = [cut(message["role"], message["content"]) for message in prompt.messages[-TURNS:]]
    return Case(turns, len(prompt.messages) - len(turns), answers, notes)


def cut(title: str, text: str, room: int = ROOM) -> Text:
    """Cut a text to `room` bytes of HTML, and count the characters left out."""
    for i, character in enumerate(text):
        room -= len(str(escape(character)).encode())
        if room < 0:
            return Text(title, text[:i], len(text) - i)
    return Text(title, text, 0)
