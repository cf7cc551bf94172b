"""The label page: how reliable a labelling is, and which judgements were in doubt.

It needs only the label node, of any labeler, and leaves out empty sections. Its examples are judgements contradicted
by the checks, by the other order or by another judge, and the closest calls: a hash of their content picks them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import escape

from stages.evaluation.intervals import Interval
from stages.evaluation.labelling import Call, Labelling, Share
from stages.evaluation.reliability import Key, key_of, known_by_checks, word_of
from stages.labelers.verdicts import JudgeVote
from stages.pages import label_votes
from stages.pages.environment import environment
from stages.pages.glossary import TEXTS, in_words
from stages.pages.headline import counted
from stages.store.manifest import command_of, manifest_of
from stages.store.numbers import signed
from stages.store.records import Candidate, Example, Judgement, content_id
from stages.store.sealed_json import WRONG_SHAPE, Damaged, load_json, require_keys

PAGE = "labels.html"  # file name in a report's node and in the store's root
TASKS = 60  # most rows of the table by task
BARS = 10  # bins of the scores, if there are more distinct values
CONTENTS: dict[str, str] = TEXTS["label_sections"]
AGREEMENT: dict[str, str] = TEXTS["agreement"]  # titles
SHOWN = 3  # examples under a heading
TURNS = 4  # last turns of a conversation that are shown
ROOM, WORDS = 3000, 300  # most bytes of a text on the page, and of a judge's reply
ORDERS = {"ab": ", A first", "ba": ", B first and called A", "": ""}


def page(folder: Path) -> str:
    """Render the page of a label node."""
    manifest, labelling = manifest_of(folder), Labelling.read(folder)
    metrics, audited = manifest["metrics"], folder / "reliability.json"
    reliability = load_json(audited, require_keys("audited", "known")) if audited.exists() else {}
    audits = metrics["labeler"] != "verifier"  # the verifier's labels are the checks themselves
    votes = label_votes.read_votes(folder, manifest, labelling)
    words = label_votes.words_of_members(folder, manifest, labelling, votes)
    sections = {
        "known": agreement_rows(
            reliability, "an answer is good" if labelling.scored else "the first is better"
        ),
        "shares": shares(labelling),
        "judges": label_votes.judges(labelling, votes),
        "ensemble": label_votes.members(labelling, words, manifest),
        "scores": scores(labelling),
        "missing": Counter(str(j.error) for j in labelling.judgements if j.error).most_common(),
        "tasks": tasks(labelling, reliability),
        "cases": {
            title: listed
            for title, listed in cases(folder, labelling, votes, words, audits)
            if listed
        },
        "made": manifest,
    }
    template = environment().get_template("labels.html.jinja")
    return template.render(
        sections,
        contents={name: title for name, title in CONTENTS.items() if sections[name]},
        headline=headline(labelling, reliability, metrics),
        audits=audits,
        reliability=reliability,
        together=label_votes.agreeing(labelling, words),
        metrics=metrics,
        command=command_of(manifest),
        unit="words" if metrics["labeler"] == "dataset" else "tokens",
    )


def headline(
    labelling: Labelling, reliability: dict[str, Any], metrics: dict[str, Any]
) -> list[str]:
    """Return sentences on the counts, the agreement with known labels, and the effects of order and length."""
    prompts = counted(len(labelling.prompts), "prompt")
    ties = sum(j.preference == "tie" for j in labelling.valid)
    compared = counted(len(labelling.judgements), "comparison")
    counts = f"{counted(len(labelling.valid) - ties, 'preference')}, {counted(ties, 'tie')}"
    counts = "all ties" if ties and ties == len(labelling.valid) else counts
    sentences = [f"{compared} on {prompts}, by {metrics['labeler']}: {counts}"]
    if (average := labelling.mean_score()) is not None:
        answers = counted(sum(map(len, labelling.scored.values())), "answer")
        right = metrics["pass_rate"]  # None: the score does not say which answers are right
        rates = f"{average:.3f} on average" + ("" if right is None else f", {right:.1%} at 1")
        sentences = [f"{answers} to {prompts}, scored by {metrics['labeler']}: {rates}"]
    missing = len(labelling.judgements) - len(labelling.valid)
    sentences[0] += f", {missing:,} missing." if missing else "."
    if "accuracy" in reliability:
        agreeing_share = Share(reliability["known"], Interval(**reliability["accuracy"]))
        sentences.append(
            f"The known labels agree with {share_clause(agreeing_share, 'judgement')}, drawn at random."
        )
    if flips := labelling.flips():
        sentences.append(
            f"The order of two answers changes a judge's choice in {share_clause(flips, 'comparison')}."
        )
    if length := labelling.longer():
        sentences.append(
            f"The longer answer is the better one in {share_clause(length, 'pair')} of unequal length."
        )
    return sentences


def share_clause(share: Share, noun: str) -> str:
    """Return a share as text: `71.0% (62.1% to 78.6%) of 120 judgements`, `none (up to 3.1%) of 120 judgements`."""
    mean, low, high = share.rate.mean, share.rate.low, share.rate.high
    extreme = (
        f"none (up to {high:.1%})" if mean == 0 else f"all ({low:.1%} or more)" if mean == 1 else ""
    )
    return f"{extreme or f'{mean:.1%} ({low:.1%} to {high:.1%})'} of {counted(share.total, noun)}"


def agreement_rows(reliability: dict[str, Any], positive: str) -> list[tuple[str, str, str]]:
    """Return (title, figure, interval) rows from `reliability.json`. `positive`: the clause for a positive."""
    if "accuracy" not in reliability:
        return []
    estimates = reliability | (reliability.get("positive_rate") or {})
    rows = list[tuple[str, str, str]]()
    for name, title in AGREEMENT.items():
        if estimate := estimates.get(name):
            form = "{:z.2f}" if name in ("kappa", "alpha") else "{:.1%}"
            mean, low, high = (signed(estimate[key], form) for key in ("mean", "low", "high"))
            rows.append((title.format(positive=positive), mean, f"{low} to {high}"))
    return rows


def shares(labelling: Labelling) -> dict[str, Share]:
    """Return the shares on ties, order and length that have data."""
    rates = {
        "the longer of two answers is better": labelling.longer(),
        "the order of two answers changes a judge's choice": labelling.flips(),
        "ties between answers that differ": labelling.ties(),
        "prompts in which no answer is better than another": labelling.undecided(),
    }
    return {title: rate for title, rate in rates.items() if rate}


def scores(labelling: Labelling) -> list[dict[str, Any]]:
    """Count each score, or each tenth if there are many scores; lowest first. `width`: percent of the widest bar."""
    given_scores = [score for scored in labelling.scored.values() for _, score in scored]
    counts = Counter(f"{score:.2f}" for score in given_scores)
    if len(counts) > BARS:
        tenths = [min(int(score * BARS), BARS - 1) for score in given_scores]
        counts = Counter(f"{tenth / BARS:.1f} to {(tenth + 1) / BARS:.1f}" for tenth in tenths)
    most = max(counts.values(), default=1)
    bars = sorted(counts.items())
    return [
        {"title": name, "number": count, "width": round(100 * count / most, 1)}
        for name, count in bars
    ]


def tasks(labelling: Labelling, reliability: dict[str, Any]) -> dict[str, Any]:
    """Return the table by task, most judgements first; {} if there is only one task."""
    by_task = sorted(labelling.by_task().items(), key=lambda item: -len(item[1].judgements))
    if len(by_task) < 2:
        return {}
    rows = [
        {
            "name": in_words(task),
            "judged": len(labelling_of_task.valid),
            "missing": len(labelling_of_task.judgements) - len(labelling_of_task.valid),
            "score": labelling_of_task.mean_score(),
            "ties": labelling_of_task.ties(),
            "flips": labelling_of_task.flips(),
            "longer": labelling_of_task.longer(),
            "right": reliability.get("by_topic", {}).get(task),
        }
        for task, labelling_of_task in by_task
    ]
    columns = {
        name for row in rows for name, value in row.items() if value is not None and value != 0
    }
    return {"rows": rows[:TASKS], "columns": columns, "more": len(rows[TASKS:])}


class Text(NamedTuple):
    title: str
    text: str
    more: int  # number of characters left out


class JudgedAnswer(NamedTuple):
    """An answer as it was judged, and the thought before it."""

    answer: Text
    thought: Text

    @classmethod
    def of(cls, title: str, candidate: Candidate) -> "JudgedAnswer":
        return cls(cut(title, candidate.answer), cut("", candidate.thought))


class Case(NamedTuple):
    """A prompt with one or two of its answers, and notes on their judgements."""

    turns: list[Text]
    earlier: int  # number of turns left out
    answers: list[JudgedAnswer]
    notes: list[str]


Section = tuple[str, list[Case]]  # a heading with its examples


def cases(
    folder: Path,
    labelling: Labelling,
    votes: label_votes.Votes,
    words: label_votes.VotesByMember,
    audits: bool,
) -> Iterator[Section]:
    """Yield each heading with its examples. `votes`: the replies of judges. `words`: the labels of judges or ensemble
    members. `audits`: False if the checks themselves made the labels."""

    def first(judgements: Iterable[Judgement], truth: dict[Key, str]) -> list[Case]:
        drawn = sorted(judgements, key=lambda j: content_id(*key_of(j)))[:SHOWN]
        notes = [
            vote_lines(votes[key_of(j)]) if votes else member_lines(words.get(key_of(j), {}))
            for j in drawn
        ]
        noted = zip(drawn, notes, strict=True)
        return [judgement_case(labelling, j, lines, truth.get(key_of(j))) for j, lines in noted]

    truth = read_audit(folder / "audit.jsonl", labelling) if audits else {}
    wrong = [j for j in labelling.valid if truth.get(key_of(j), word_of(j)) != word_of(j)]
    yield (
        f"Against the checks: {len(wrong)} of {counted(len(truth), 'audited judgement')}",
        first(wrong, truth),
    )
    turned = [j for j in labelling.preferences if j.order_swapped_agrees is False]
    total = counted(len(labelling.preferences), "comparison")
    yield (
        f"Another choice of a judge in the other order: {len(turned)} of {total}",
        first(turned, truth),
    )
    differing = [
        j for j in labelling.valid if len({*words.get(key_of(j), {}).values()} - {None}) > 1
    ]
    total = counted(len(labelling.valid), "judgement")
    yield (
        f"{'Judges' if votes else 'Members'} that disagree: {len(differing)} of {total}",
        first(differing, truth),
    )
    ranked = sorted(
        labelling.calls(),
        key=lambda c: (c.gap, content_id(c.better.candidate_id, c.worse.candidate_id)),
    )
    yield "The closest calls", [call_case(labelling, call) for call in ranked[:SHOWN]]


def read_audit(audit: Path, labelling: Labelling) -> dict[Key, str]:
    """Return the checks' labels of the audited judgements; empty without an audit."""
    if not audit.exists():
        return {}
    try:
        keys = {tuple(json.loads(row)["judged"]) for row in audit.read_bytes().splitlines()}
    except WRONG_SHAPE as error:
        raise Damaged(audit, error) from error
    return known_by_checks(
        [j for j in labelling.valid if key_of(j) in keys], labelling.prompts, labelling.candidates
    )


def judgement_case(
    labelling: Labelling, j: Judgement, lines: Iterable[str], known_word: str | None
) -> Case:
    """Show a judgement with its candidates, the known label, and the `lines` of judges or members."""
    titles = ("Answer",) if j.candidate_id else ("A", "B")
    answers = [
        JudgedAnswer.of(title, labelling.candidates[i])
        for title, i in zip(titles, key_of(j), strict=True)
    ]
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
    answers = [
        JudgedAnswer.of(title, candidate)
        for title, candidate in zip(titles, (call.better, call.worse), strict=True)
    ]
    note = f"better by {call.gap:.3g}" if call.gap else "a tie"
    return case(labelling.prompts[call.better.prompt_id], answers, [note])


def case(prompt: Example, answers: list[JudgedAnswer], notes: list[str]) -> Case:
    turns = [cut(message["role"], message["content"]) for message in prompt.messages[-TURNS:]]
    return Case(turns, len(prompt.messages) - len(turns), answers, notes)


def cut(title: str, text: str, room: int = ROOM) -> Text:
    """Cut a text to `room` bytes of HTML, and count the characters left out."""
    for i, character in enumerate(text):
        room -= len(str(escape(character)).encode())
        if room < 0:
            return Text(title, text[:i], len(text) - i)
    return Text(title, text, 0)
