"""Held-out pairs by group: by the values of the user's columns, by length, and by who labelled them.

A model may favour the better answer overall and the worse one throughout a group, as where the labels of one language
were reversed. Such a group is found by exact tests, corrected for the number of groups (Holm 1979, Scandinavian
Journal of Statistics 6:2)."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.errors import UserError
from stages.evaluation.claims import HALF, Word, word_of
from stages.evaluation.distributions import binomial_at_most
from stages.evaluation.estimate import correction, difference, share
from stages.evaluation.intervals import Interval
from stages.evaluation.results import PairGroup, PairGroups
from stages.store.records import Pair, PairLogProbs
from stages.store.user_columns import read_user_columns

FEWEST_VALUES = 2
MOST_VALUES = 10  # values of a column whose groups are told
FEWEST_PAIRS = 5  # of a group
BEYOND_CHANCE = 0.05  # of any group that is called reversed
CERTAIN = 0.001  # of any group that is called reversed for certain
LENGTH_NAMES = ("short", "medium", "long")
# a model that learnt length ranks so, whatever its labels: this division is shown, and tested for no fault
LONGER = "the longer answer"
LENGTH_COLUMNS = ("length of the prompt", "length of the chosen answer")

Array = NDArray[np.float64]


@dataclass
class PairMargin:
    """What a training changed on a pair. `in_order`: 1 if the model favours the chosen answer more than the model before
    it, 0.5 if both favour it alike. `margin`: the gain of the chosen over the rejected answer, in nats a token. `fell`: by
    how much the one fell that fell less, in nats a token. `tokens`: of prompt, chosen and rejected answer."""

    prompt: str
    in_order: float
    margin: float
    fell: float
    tokens: tuple[float, float, float]


@dataclass
class GroupedPairs:
    """A group with the places of its pairs."""

    group: PairGroup
    members: list[int]


def pair_margins(
    pairs: Sequence[tuple[Pair, PairLogProbs]], gained: Array, tokens: Array
) -> list[PairMargin]:
    """Return what a training changed on each pair. `gained`: by how much the log-probs of chosen and rejected rose, and
    `tokens` their lengths, each (pairs, 2)."""
    margins = gained[:, 0] - gained[:, 1]
    of_both = tokens.sum(1)
    rows = list[PairMargin]()
    for i, (pair, ids) in enumerate(pairs):
        row = PairMargin(
            pair.prompt_id,
            (1 + float(np.sign(margins[i]))) / 2,
            2 * float(margins[i] / of_both[i]),
            float(-(gained[i] / tokens[i]).max()),
            (len(ids.prompt_ids), float(tokens[i, 0]), float(tokens[i, 1])),
        )
        rows.append(row)
    return rows


def group_results(
    by: Sequence[str],
    inputs: Mapping[str, Path],
    pairs: Sequence[tuple[Pair, PairLogProbs]],
    rows: Sequence[PairMargin],
    confidence: float,
) -> PairGroups:
    """Return all groups of held-out pairs. `by`: the columns of `eval.by`; []: those of few values, lengths and labeler.
    Raise UserError if a column of `by` is not kept, or does not divide the pairs."""
    tested = list[GroupedPairs]()
    for column, values in divisions(by, inputs, [pair for pair, _ in pairs], rows).items():
        tested += groups_of_column(column, values, rows, confidence)
    mark_reversed(tested, rows)
    fell = float(np.mean([row.fell for row in rows]))
    return PairGroups(fell, [each.group for each in tested])


def divisions(
    by: Sequence[str],
    inputs: Mapping[str, Path],
    pairs: Sequence[Pair],
    rows: Sequence[PairMargin],
) -> dict[str, list[str | None]]:
    """Return by column the value of each pair; None where its row has none."""
    prompts = {pair.prompt_id for pair in pairs}
    nodes = [inputs[name] for name in ("pairs", "unpaired") if name in inputs]
    columns = read_user_columns(nodes, prompts)
    found = dict[str, list[str | None]]()
    for name in columns.names:
        found[name] = [as_value(columns.of(pair.prompt_id)[name]) for pair in pairs]
    for name in by:
        values = {*found.get(name, ())} - {None}
        if not FEWEST_VALUES <= len(values) <= MOST_VALUES:
            raise by_error(name, found)
    if by:
        return {name: found[name] for name in by}
    found |= own_divisions(pairs, rows)
    return {name: values for name, values in found.items() if has_few_values(values)}


def own_divisions(pairs: Sequence[Pair], rows: Sequence[PairMargin]) -> dict[str, list[str | None]]:
    """Return the divisions that need no column of the user's."""
    lengths = [row.tokens for row in rows]
    of_prompt, of_chosen = LENGTH_COLUMNS
    return {
        of_prompt: thirds([prompt for prompt, _, _ in lengths]),
        of_chosen: thirds([chosen for _, chosen, _ in lengths]),
        LONGER: [longer_side(chosen, rejected) for _, chosen, rejected in lengths],
        "turns of the prompt": [str(len(pair.prompt)) for pair in pairs],
        "labeler": [pair.labeler for pair in pairs],
        "strategy": [pair.strategy for pair in pairs],
    }


def thirds(lengths: Sequence[float]) -> list[str | None]:
    """Return of each length whether it is in the short, the medium or the long third."""
    bounds = np.quantile(lengths, [1 / 3, 2 / 3])
    return [LENGTH_NAMES[int(np.searchsorted(bounds, length))] for length in lengths]


def longer_side(chosen: float, rejected: float) -> str | None:
    if chosen == rejected:
        return None
    return "chosen" if chosen > rejected else "rejected"


def as_value(value: Any) -> str | None:
    """Return a column's value as it is shown: an empty one is none."""
    return None if value in (None, "") else str(value)


def has_few_values(values: Iterable[str | None]) -> bool:
    """Return whether a column divides pairs into 2 to 10 groups, of which two are large enough to tell."""
    counts = Counter(value for value in values if value is not None)
    is_divided = FEWEST_VALUES <= len(counts) <= MOST_VALUES
    return is_divided and counts.most_common(2)[-1][1] >= FEWEST_PAIRS


def by_error(name: str, found: Mapping[str, Sequence[str | None]]) -> UserError:
    """Return the error for a column of `eval.by` by which the pairs cannot be divided."""
    fitting = [column for column, values in found.items() if has_few_values(values)]
    problem = "the preferences have no such column of few values"
    if name in found:
        count = len({*found[name]} - {None})
        problem = f"it has {count} values on the held-out pairs, and {FEWEST_VALUES} to {MOST_VALUES} are shown"
    way_out = "Remove it: eval.by=null."
    if fitting:
        way_out = f"Columns that divide them: eval.by=[{','.join(fitting)}]."
    return UserError(f"eval.by=[{name}]: {problem}. {way_out}")


def groups_of_column(
    column: str, values: Sequence[str | None], rows: Sequence[PairMargin], confidence: float
) -> list[GroupedPairs]:
    """Return the groups of a column that have enough pairs, by value."""
    tested = list[GroupedPairs]()
    counts = Counter(value for value in values if value is not None)
    for value in sorted(counts):
        places = [i for i, each in enumerate(values) if each == value]
        members = [rows[i] for i in places]
        others = [row for row, each in zip(rows, values, strict=True) if each != value]
        if len(members) < FEWEST_PAIRS or not others:
            continue
        by_prompt = in_order_by_prompt(members)
        group = PairGroup(
            column,
            value,
            len(members),
            len(by_prompt),
            sum(row.in_order for row in members),
            share_in_order(members, confidence),
            share_in_order(others, confidence),
            mean_margin(members, confidence),
            so_few_by_chance(by_prompt),
        )
        tested.append(GroupedPairs(group, places))
    return tested


def so_few_by_chance(by_prompt: Sequence[float]) -> float:
    """Return the probability of so few prompts in order if each is by chance."""
    return binomial_at_most(math.ceil(sum(by_prompt)), len(by_prompt), HALF)


def in_order_by_prompt(rows: Sequence[PairMargin]) -> list[float]:
    """Return the share in order of each prompt: pairs of one prompt are not independent."""
    by_prompt = dict[str, list[float]]()
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row.in_order)
    return [float(np.mean(values)) for values in by_prompt.values()]


def share_in_order(rows: Sequence[PairMargin], confidence: float) -> Interval:
    shares = np.array([row.in_order for row in rows])
    return share(shares, [row.prompt for row in rows]).interval(confidence)


def mean_margin(rows: Sequence[PairMargin], confidence: float) -> Interval:
    margins = [row.margin for row in rows]
    return difference([0.0] * len(margins), margins, confidence)


def mark_reversed(groups: Sequence[GroupedPairs], rows: Sequence[PairMargin]) -> None:
    """Set `is_reversed` and `is_certain` by Holm's method over all groups, the clearest first. A group that is reversed
    only because it shares pairs with a clearer one, as long answers with those in one language, is not marked."""
    tested = sorted((each for each in groups if each.group.column != LONGER), key=p_of)
    p_values = [p_of(each) for each in tested]
    levels = correction(p_values, BEYOND_CHANCE)
    certain_levels = correction(p_values, CERTAIN)
    explained = set[int]()
    for each, level, certain_level in zip(tested, levels, certain_levels, strict=True):
        group = each.group
        if group.p > level:
            return
        left = [rows[i] for i in each.members if i not in explained]
        is_clear = bool(left) and so_few_by_chance(in_order_by_prompt(left)) <= level
        is_rest_in_order = word_of(group.rest, HALF) is Word.better
        if is_clear and group.share.mean < HALF and is_rest_in_order:
            group.is_reversed = True
            group.is_certain = group.p <= certain_level
            explained.update(each.members)


def p_of(tested: GroupedPairs) -> float:
    return tested.group.p
