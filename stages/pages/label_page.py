"""The label page: how reliable a labelling is, and which judgements were in doubt.

It needs only the label node, of any labeler, and leaves out empty sections."""

from collections import Counter
from pathlib import Path
from typing import Any

from stages.evaluation.intervals import Interval
from stages.evaluation.labelling import Labelling, Share
from stages.pages.cases import cases
from stages.pages.environment import environment
from stages.pages.glossary import TEXTS, in_words
from stages.pages.headline import counted
from stages.pages.jury import agreeing, judges, members, read_votes, words_of_judges, words_of_members
from stages.store.manifest import manifest_of
from stages.store.numbers import signed
from stages.store.sealed_json import load_json, require_keys

PAGE = "labels.html"  # file name in a report's node and in the store's root
TASKS = 60  # most rows of the table by task
BARS = 10  # bins of the scores, if there are more distinct values
CONTENTS: dict[str, str] = TEXTS["label_sections"]
AGREEMENT: dict[str, str] = TEXTS["agreement"]  # titles


def page(folder: Path) -> str:
    """Render the page of a label node."""
    manifest, labelling = manifest_of(folder), Labelling.read(folder)
    metrics, audited = manifest["metrics"], folder / "reliability.json"
    reliability = load_json(audited, require_keys("audited", "known")) if audited.exists() else {}
    audits = metrics["labeler"] != "verifier"  # the verifier's labels are the checks themselves
    votes = read_votes(folder, manifest, labelling)
    words = words_of_judges(votes) or words_of_members(folder, manifest, labelling)
    sections = {
        "known": agreement_rows(reliability, "an answer is good" if labelling.scored else "the first is better"),
        "shares": shares(labelling),
        "judges": judges(labelling, votes),
        "ensemble": members(labelling, words, manifest),
        "scores": scores(labelling),
        "missing": Counter(str(j.error) for j in labelling.judgements if j.error).most_common(),
        "tasks": tasks(labelling, reliability),
        "cases": {title: listed for title, listed in cases(folder, labelling, votes, words, audits) if listed},
        "made": manifest,
    }
    template = environment().get_template("labels.html.jinja")
    return template.render(
        sections,
        contents={name: title for name, title in CONTENTS.items() if sections[name]},
        headline=headline(labelling, reliability, metrics),
        audits=audits,
        reliability=reliability,
        together=agreeing(labelling, words),
        metrics=metrics,
        unit="words" if metrics["labeler"] == "dataset" else "tokens",
    )


def headline(labelling: Labelling, reliability: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """Return sentences on the counts, the agreement with known labels, and the effects of order and length."""
    prompts, ties = counted(len(labelling.prompts), "prompt"), sum(j.preference == "tie" for j in labelling.valid)
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
    if count := metrics.get("redrawn"):
        sentences.append(f"{count:,} of the answers are further draws for prompts where no earlier answer was right.")
    if "accuracy" in reliability:
        agreeing_share = Share(reliability["known"], Interval(**reliability["accuracy"]))
        sentences.append(f"The known labels agree with {share_clause(agreeing_share, 'judgement')}, drawn at random.")
    if flips := labelling.flips():
        sentences.append(f"The order of two answers changes a judge's choice in {share_clause(flips, 'comparison')}.")
    if length := labelling.longer():
        sentences.append(f"The longer answer is the better one in {share_clause(length, 'pair')} of unequal length.")
    return sentences


def share_clause(share: Share, noun: str) -> str:
    """Return a share as text: `71.0% (62.1% to 78.6%) of 120 judgements`, `none (up to 3.1%) of 120 judgements`."""
    mean, low, high = share.rate.mean, share.rate.low, share.rate.high
    extreme = f"none (up to {high:.1%})" if mean == 0 else f"all ({low:.1%} or more)" if mean == 1 else ""
    return f"{extreme or f'{mean:.1%} ({low:.1%} to {high:.1%})'} of {counted(share.total, noun)}"


def agreement_rows(reliability: dict[str, Any], positive: str) -> list[tuple[str, str, str]]:
    """Return (title, figure, interval) rows from `reliability.json`. `positive`: the clause for a positive."""
    if "accuracy" not in reliability:
        return []
    estimates, rows = reliability | (reliability.get("positive_rate") or {}), list[tuple[str, str, str]]()
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
    """Count each score, or each tenth if there are many distinct scores; lowest first. `width`: percent of the widest
    bar."""
    given_scores = [score for scored in labelling.scored.values() for _, score in scored]
    counts = Counter(f"{score:.2f}" for score in given_scores)
    if len(counts) > BARS:
        tenths = [min(int(score * BARS), BARS - 1) for score in given_scores]
        counts = Counter(f"{tenth / BARS:.1f} to {(tenth + 1) / BARS:.1f}" for tenth in tenths)
    most = max(counts.values(), default=1)
    bars = sorted(counts.items())
    return [{"title": name, "number": count, "width": round(100 * count / most, 1)} for name, count in bars]


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
    columns = {name for row in rows for name, value in row.items() if value is not None and value != 0}
    return {"rows": rows[:TASKS], "columns": columns, "more": len(rows[TASKS:])}
