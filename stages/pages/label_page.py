"""The label page: how far a labelling can be trusted, and where it was in doubt.

It is made of the label node alone, whoever labelled; a section that has nothing to say is not there.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from stages.evaluation.agreement import Estimate
from stages.evaluation.labelling import Labelling, Share, longer
from stages.pages.cases import cases
from stages.pages.environment import environment
from stages.pages.glossary import in_words
from stages.pages.headline import counted
from stages.pages.jury import heard, judges, members, said, spoken, together
from stages.store.manifest import manifest_of
from stages.store.numbers import signed
from stages.store.sealed_json import having, load_json

PAGE = "labels.html"  # in a report's node, and in the store's root
TASKS = 60  # rows of the table by task
TIMES = ((1.0, 1.25), (1.25, 2.0), (2.0, float("inf")))  # how many times as long the longer one is
BARS = 10  # of the scores, where there are more values
CONTENTS = {
    "known": "Agreement with what is known",
    "shares": "Ties, order, length",
    "judges": "Judges",
    "ensemble": "The ensemble",
    "scores": "Scores",
    "missing": "What is missing",
    "tasks": "By task",
    "cases": "In doubt",
    "made": "How it was made",
}


class Bar(NamedTuple):
    title: str
    number: int
    width: float  # percent of the widest


def page(folder: Path) -> str:
    """The page of a label node."""
    manifest, labelling = manifest_of(folder), Labelling.read(folder)
    metrics, audited = manifest["metrics"], folder / "reliability.json"
    known = load_json(audited, having("audited", "known")) if audited.exists() else {}
    audits = metrics["labeler"] != "verifier"  # whose labels are what is known
    votes = heard(folder, manifest, labelling)
    words = said(votes) or spoken(folder, manifest, labelling)
    sections = {
        "known": agreements(known, "an answer is good" if labelling.scored else "the first of two is better"),
        "shares": shares(labelling),
        "judges": judges(labelling, votes),
        "ensemble": members(labelling, words, manifest),
        "scores": scores(labelling),
        "missing": Counter(str(j.error) for j in labelling.judgements if j.error).most_common(),
        "tasks": tasks(labelling, known),
        "cases": {title: its for title, its in cases(folder, labelling, votes, words, audits) if its},
        "made": manifest,
    }
    html = (
        environment()
        .get_template("labels.html.jinja")
        .render(
            sections,
            contents={name: title for name, title in CONTENTS.items() if sections[name]},
            headline=headline(labelling, known, metrics),
            audits=audits,
            reliability=known,
            lengths=lengths(labelling),
            together=together(labelling, words),
            metrics=metrics,
            unit="words" if metrics["labeler"] == "dataset" else "tokens",
        )
    )
    return str(html)


def headline(labelling: Labelling, known: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """What was judged, how often it is right, how often the order decides, and whether length does."""
    prompts, ties = counted(len(labelling.prompts), "prompt"), sum(j.preference == "tie" for j in labelling.given)
    compared = counted(len(labelling.judgements), "comparison")
    counts = f"{counted(len(labelling.given) - ties, 'preference')}, {counted(ties, 'tie')}"
    counts = "all ties" if ties and ties == len(labelling.given) else counts
    told = [f"{compared} on {prompts}, by {metrics['labeler']}: {counts}"]
    if (average := labelling.mean_score()) is not None:
        answers = counted(sum(map(len, labelling.scored.values())), "answer")
        rates = f"{average:.3f} on average, {metrics['pass_rate']:.1%} at 1"
        told = [f"{answers} to {prompts}, scored by {metrics['labeler']}: {rates}"]
    missing = len(labelling.judgements) - len(labelling.given)
    told[0] += f", {missing:,} missing." if missing else "."
    if "accuracy" in known:
        sure = Share(known["known"], Estimate(**known["accuracy"]))
        told.append(f"What is known agrees in {inline(sure, 'judgement')}, drawn at random.")
    if flips := labelling.flips():
        told.append(f"The order of two answers changes the choice in {inline(flips, 'comparison')}.")
    if length := longer(labelling.contests):
        told.append(f"The longer answer is the better one in {inline(length, 'pair')} that differ in length.")
    return told


def inline(its: Share, noun: str) -> str:
    """`71.0% (62.1% to 78.6%) of 120 judgements`; where none is, `none (up to 3.1%) of 120 judgements`."""
    mean, low, high = its.rate
    told = f"none (up to {high:.1%})" if mean == 0 else f"all ({low:.1%} or more)" if mean == 1 else ""
    return f"{told or f'{mean:.1%} ({low:.1%} to {high:.1%})'} of {counted(its.of, noun)}"


def agreements(known: dict[str, Any], positive: str) -> list[tuple[str, str, str]]:
    """Rows of `reliability.json`: what it is, its figure, its interval. `positive`: what its rates are of."""
    if "accuracy" not in known:
        return []
    of = known.get("positive_rate") or {}
    rates = {
        "right": known["accuracy"],
        f"… where it is known that {positive}": known.get("sensitivity"),
        "… where it is known not to be so": known.get("specificity"),
        "preferences that are the right way round": known.get("pair_accuracy"),
        "… the wrong way round": known.get("pair_wrong"),
        "… between two equally good answers": known.get("pair_neither"),
        f"how often {positive}, of all others, as judged": of.get("judged"),
        f"how often {positive}, of all others, corrected": of.get("corrected"),
    }
    numbers = {"Cohen's κ": known.get("kappa"), "Krippendorff's α": known.get("alpha")}
    rows = [(title, told, "{:.1%}") for title, told in rates.items() if told]
    rows += [(title, told, "{:z.2f}") for title, told in numbers.items() if told]
    return [
        (title, signed(its["mean"], form), f"{signed(its['low'], form)} to {signed(its['high'], form)}")
        for title, its, form in rows
    ]


def shares(labelling: Labelling) -> dict[str, Share]:
    """What there is to say of ties, order and length."""
    found = {
        "the longer of two answers is better": longer(labelling.contests),
        "the order of two answers changes the choice": labelling.flips(),
        "ties between answers that differ": labelling.ties(),
        "prompts in which no answer is better than another": labelling.undecided(),
    }
    return {title: its for title, its in found.items() if its}


def lengths(labelling: Labelling) -> dict[str, Share]:
    """How often the longer is better, by how many times as long it is."""
    found = {}
    for low, high in TIMES:
        title = f"{low:g} to {high:g} times as long" if high < float("inf") else f"more than {low:g} times as long"
        found[title] = longer([c for c in labelling.contests if low < c.times <= high])
    return {title: its for title, its in found.items() if its}


def scores(labelling: Labelling) -> list[Bar]:
    """How often each score was given, or each tenth where there are many; lowest first."""
    given = [score for those in labelling.scored.values() for _, score in those]
    counts = Counter(f"{score:.2f}" for score in given)
    if len(counts) > BARS:
        tenths = [min(int(score * BARS), BARS - 1) for score in given]
        counts = Counter(f"{tenth / BARS:.1f} to {(tenth + 1) / BARS:.1f}" for tenth in tenths)
    most = max(counts.values(), default=1)
    return [Bar(name, count, round(100 * count / most, 1)) for name, count in sorted(counts.items())]


def tasks(labelling: Labelling, known: dict[str, Any]) -> dict[str, Any]:
    """The table by task, those with the most judgements first; {} where all are of one."""
    by = sorted(labelling.by_task().items(), key=lambda item: -len(item[1].judgements))
    if len(by) < 2:
        return {}
    rows = [
        {
            "name": in_words(task),
            "judged": len(its.given),
            "missing": len(its.judgements) - len(its.given),
            "score": its.mean_score(),
            "ties": its.ties(),
            "flips": its.flips(),
            "longer": longer(its.contests),
            "right": known.get("by_topic", {}).get(task),
        }
        for task, its in by
    ]
    told = {name for row in rows for name, value in row.items() if value is not None and value != 0}
    return {"rows": rows[:TASKS], "columns": told, "more": len(rows[TASKS:])}
