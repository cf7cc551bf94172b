"""The split of preferences into training and held-out rows: rows that nearly repeat each other are on one side.

Rows are near-equal by the audit's index of near-duplicates, with its threshold, and by one text: the prompt's turns and
the completions. A held-out row that repeats a training row shows what was memorised, not what was learnt."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.curation.audit.overlap import SeenTexts, Sketch, sketch
from stages.store.records import Example, Pair, Records, save
from stages.store.single_completions import UnpairedPreference
from stages.store.splits import conversation_of, held_out_place
from stages.store.text_units import transcript
from stages.store.workspace import StageDir

Row = TypeVar("Row", Pair, UnpairedPreference)
Size = NDArray[np.float64]  # the numbers of conversations and of rows
NOTHING: Size = np.zeros(2)


class SketchedRow(NamedTuple):
    """A row with its conversation, and its text as the index reads it."""

    id: str
    conversation: str
    text: Sketch


@dataclass(frozen=True)
class SplitReport:
    """The result of a split. `fraction`: the share of conversations that was asked for. `grouped`: conversations with a
    near-equal one. `repeats`: held-out rows that nearly equal a training row."""

    fraction: float
    conversations: int
    held_out_conversations: int
    groups: int
    grouped: int
    rows: int
    held_out: int
    repeats: int

    @property
    def figures(self) -> dict[str, int]:
        """The counts of held-out rows for a manifest."""
        return {
            "held_out": self.held_out,
            "repeats": self.repeats,
            "near_equal_prompts": self.grouped,
            "near_equal_groups": self.groups,
        }

    @property
    def held_out_clause(self) -> str:
        """Return how many rows are held out, and how many of them repeat a training row."""
        if self.repeats:
            return f"{self.held_out} held out, of which {self.repeats} repeat a training row"
        return f"{self.held_out} held out"

    def report(self, key: str, out: StageDir) -> None:
        """Say what near-equal rows did to the split, and warn if held-out rows repeat training rows. `key`: of the
        fraction."""
        if self.repeats:
            out.warn(
                f"{key}={self.fraction:g}: {self.repeats} of {self.held_out} held-out rows repeat a training row, as "
                "nearly all rows are alike. Add rows of other prompts and answers."
            )
        elif self.grouped:
            of_prompts = self.held_out_conversations / self.conversations
            of_rows = self.held_out / self.rows
            out.inform(
                f"{self.grouped} of {self.conversations} prompts nearly equal another one, with their answers. Each of "
                f"their {self.groups} groups is on one side of the split, so {of_prompts:.1%} of the prompts are held "
                f"out ({key}={self.fraction:g}), with {of_rows:.1%} of the rows."
            )


class Groups:
    """Conversations that stay on one side, with their numbers of rows. Each group is named by its smallest id."""

    def __init__(self, rows_by_conversation: Counter[str]):
        self.rows = rows_by_conversation
        self.parents = {conversation: conversation for conversation in rows_by_conversation}

    def name_of(self, conversation: str) -> str:
        """Return the name of a conversation's group."""
        name = conversation
        while self.parents[name] != name:
            name = self.parents[name]
        self.parents[conversation] = name
        return name

    def join(self, first: str, second: str) -> None:
        """Make one group of the groups of two conversations."""
        smaller, larger = sorted((self.name_of(first), self.name_of(second)))
        self.parents[larger] = smaller

    def sizes(self) -> dict[str, Size]:
        """Return the size of each group."""
        sizes = dict[str, Size]()
        for conversation, rows in self.rows.items():
            name = self.name_of(conversation)
            sizes[name] = sizes.get(name, NOTHING) + np.array([1, rows])
        return sizes


def split_rows(
    file: Path, kind: type[Row], prompts: Iterable[Example], fraction: float
) -> SplitReport:
    """Write the side of every row into a file of rows, and mark held-out rows that repeat a training row. Rows of one
    conversation, and near-equal rows, are on one side. The order of the rows changes no side."""
    conversation_of_prompt = {
        prompt.id: conversation_of(prompt.id, prompt.messages, prompt.together)
        for prompt in prompts
    }
    prompt_ids = Records(file, kind).column("prompt_id")
    groups: Groups = Groups(Counter(conversation_of_prompt[name] for name in prompt_ids))
    held_out = set[str]()
    repeating_ids: list[str] = []
    if fraction >= 1:
        held_out = {*groups.rows}
    elif fraction > 0:
        rows = sketch_rows(Records(file, kind), conversation_of_prompt)
        held_out, repeating_ids = keep_together(rows, groups, fraction)
    repeating = {*repeating_ids}

    def with_side(row: Row) -> Row:
        is_held_out = conversation_of_prompt[row.prompt_id] in held_out
        side = "validation" if is_held_out else "train"
        return replace(row, split=side, repeats=row.id in repeating)

    save(file, map(with_side, Records(file, kind)), kind)
    conversations = Counter(map(groups.name_of, groups.rows))
    joined = [count for count in conversations.values() if count > 1]
    return SplitReport(
        fraction=fraction,
        conversations=len(groups.rows),
        held_out_conversations=len(held_out),
        groups=len(joined),
        grouped=sum(joined),
        rows=groups.rows.total(),
        held_out=sum(groups.rows[conversation] for conversation in held_out),
        repeats=len(repeating_ids),
    )


def sketch_rows(
    rows: Iterable[Row], conversation_of_prompt: Mapping[str, str]
) -> list[SketchedRow]:
    """Return the rows as the index reads them, in the order of their ids."""
    sketched = list[SketchedRow]()
    for row in rows:
        text = sketch(text_of(row))
        sketched.append(SketchedRow(row.id, conversation_of_prompt[row.prompt_id], text))
    return sorted(sketched, key=attrgetter("id"))


def text_of(row: Pair | UnpairedPreference) -> str:
    """Return the turns and the completions, without a system message, which many different rows share. The completions
    are sorted, so that the opposite preference is near-equal too."""
    turns = [turn["content"] for turn in row.prompt if turn["role"] != "system"]
    completions = sorted(transcript(completion) for completion in row.completions)
    return "\n\n".join([*turns, *completions])


def keep_together(
    rows: list[SketchedRow], groups: Groups, fraction: float
) -> tuple[set[str], list[str]]:
    """Join the groups of near-equal rows, and return the held-out conversations, and the id of each held-out row that
    repeats a training row. Such rows remain only if the groups are too few for two sides."""
    for earlier, row in near_equal_rows(rows):
        groups.join(earlier.conversation, row.conversation)
    while True:
        held_out = draw_groups(groups, fraction)
        has_two_sides = 0 < len(held_out) < len(groups.parents)
        if not has_two_sides:
            held_out = {name for name in groups.parents if held_out_place(name) < fraction}
            return held_out, [row.id for _, row in repeating_rows(rows, held_out)]
        # the index compares a text with few others, so an index of training rows alone may find more
        missed = [*repeating_rows(rows, held_out)]
        if not missed:
            return held_out, []
        for training_row, row in missed:
            groups.join(training_row.conversation, row.conversation)


def near_equal_rows(rows: list[SketchedRow]) -> Iterator[tuple[SketchedRow, SketchedRow]]:
    """Yield each row that nearly equals an earlier one, behind that one."""
    seen = SeenTexts()
    for place, row in enumerate(rows):
        earlier = seen.find_nearest(row.text)
        if earlier:
            yield rows[int(earlier.name)], row
        seen.add(row.text, str(place))


def repeating_rows(
    rows: list[SketchedRow], held_out: set[str]
) -> Iterator[tuple[SketchedRow, SketchedRow]]:
    """Yield each held-out row that nearly equals a training row, behind that one."""
    seen = SeenTexts()
    for place, row in enumerate(rows):
        if row.conversation not in held_out:
            seen.add(row.text, str(place))
    for row in rows:
        if row.conversation in held_out:
            training_row = seen.find_nearest(row.text)
            if training_row:
                yield rows[int(training_row.name)], row


def draw_groups(groups: Groups, fraction: float) -> set[str]:
    """Return the conversations of the groups that are held out. A conversation alone in its group is drawn by itself,
    so that other rows have no influence on its side. Then larger groups are held out in a random order, which added rows
    do not change: each that the fraction has room for, and at last the one that brings the split nearest to the fraction,
    if that is nearer than without it and at most half of all."""
    sizes = groups.sizes()
    names = {
        name for name, size in sizes.items() if size[0] == 1 and held_out_place(name) < fraction
    }
    held_out = sum((sizes[name] for name in names), NOTHING)
    total = sum(sizes.values(), NOTHING)
    wanted = fraction * total
    larger = sorted((name for name in sizes if sizes[name][0] > 1), key=held_out_place)
    for name in larger:
        if (held_out + sizes[name] <= wanted).all():
            names.add(name)
            held_out = held_out + sizes[name]

    def distance_with(name: str) -> float:
        return distance(held_out + sizes[name], wanted)

    possible = [
        name for name in larger if name not in names and (held_out + sizes[name] <= total / 2).all()
    ]
    nearest = min(possible, key=distance_with, default=None)
    if nearest and distance_with(nearest) < distance(held_out, wanted):
        names.add(nearest)
    return {
        conversation for conversation in groups.parents if groups.name_of(conversation) in names
    }


def distance(size: Size, wanted: Size) -> float:
    """Return how far a size is from the wanted one, by ratio: half of it is as far as twice."""
    return float(np.abs(np.log(np.maximum(size, 1) / wanted)).sum())
