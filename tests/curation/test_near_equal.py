"""The split of preferences: near-equal rows are on one side, and those that cannot be are counted."""

import logging
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import pairs
from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy, Unfinished
from stages.curation.audit.overlap import ALIKE, jaccard, word_pairs
from stages.curation.near_equal import Groups, draw_groups, split_rows, text_of
from stages.store.records import (
    Example,
    Judgement,
    Pair,
    Records,
    content_id,
    load,
    prompt_id,
    save,
)
from stages.store.single_completions import UnpairedPreference
from stages.store.splits import draw_side
from tests.pairing.building import block
from tests.rows import candidate, save_pool, work
from tests.support_rows import support_rows

FRACTION = 0.3


def save_pairs(folder: Path, rows: list[dict[str, Any]]) -> tuple[Path, list[Example]]:
    """Write rows as a file of training pairs, and return it with their prompts."""
    prompts = dict[str, Example]()
    stored = list[Pair]()
    for row in rows:
        messages = [{"role": "user", "content": row["customer_message"]}]
        name = prompt_id(messages)
        prompts[name] = Example(name, messages, None, "s", "t", "preference")
        completions = [[{"role": "assistant", "content": row[side]}] for side in SIDES]
        pair = content_id(name, row["chosen"], row["rejected"])
        stored.append(
            Pair(pair, name, messages, *completions, None, "dataset", "all", "a", "b", "train")
        )
    file = folder / "pairs.parquet"
    folder.mkdir(exist_ok=True)
    save(file, stored, Pair)
    return file, [*prompts.values()]


SIDES = ("chosen", "rejected")


def side_by_id(file: Path) -> dict[str, str]:
    return {pair.id: pair.split for pair in Records(file, Pair)}


def count_repeats(rows: list[Pair]) -> int:
    """Count the held-out pairs that nearly equal a training pair, each compared with each."""
    training_texts = [word_pairs(text_of(row)) for row in rows if row.split == "train"]
    held_out_texts = [word_pairs(text_of(row)) for row in rows if row.split == "validation"]
    repeating = [
        text
        for text in held_out_texts
        if max(jaccard(text, other) for other in training_texts) >= ALIKE
    ]
    return len(repeating)


def test_canned_answers_are_held_out_in_whole_groups(tmp_path: Path) -> None:
    file, prompts = save_pairs(tmp_path, support_rows(200))
    prompt_by_id = {prompt.id: prompt for prompt in prompts}
    drawn_one_by_one = [
        replace(pair, split=draw_side(prompt_by_id[pair.prompt_id], FRACTION))
        for pair in Records(file, Pair)
    ]
    assert count_repeats(drawn_one_by_one) > 30
    report = split_rows(file, Pair, prompts, FRACTION)
    rows = load(file, Pair)
    assert count_repeats(rows) == report.repeats == 0
    assert report.held_out == sum(row.split == "validation" for row in rows)
    assert report.held_out_conversations / report.conversations == pytest.approx(FRACTION, abs=0.1)
    training_answers = {str((row.chosen, row.rejected)) for row in rows if row.split == "train"}
    held_out = [row for row in rows if row.split == "validation"]
    assert not [row for row in held_out if str((row.chosen, row.rejected)) in training_answers]


def groups_of(*sizes: tuple[int, int]) -> Groups:
    """Return groups of so many conversations with so many rows together."""
    rows = Counter[str]()
    names = list[list[str]]()
    for number, (conversations, of_group) in enumerate(sizes):
        names.append([f"group {number} prompt {i}" for i in range(conversations)])
        rows.update(dict.fromkeys(names[-1], 1))
        rows[names[-1][0]] += of_group - conversations
    groups = Groups(rows)
    for of_group in names:
        for name in of_group:
            groups.join(of_group[0], name)
    return groups


# Groups of (conversations, rows), the share that is asked for, and the nearest share of conversations and of rows that
# whole groups give.
LARGE = [
    (1419, 1440),
    (1392, 1430),
    (1345, 1410),
    (1321, 1380),
    (1321, 1390),
    (32, 1480),
    (28, 1470),
]


@pytest.mark.parametrize(
    ("sizes", "fraction", "of_prompts", "of_rows"),
    [
        (LARGE, 0.1, (0.19, 0.21), (0.13, 0.15)),
        (LARGE, 0.3, (0.15, 0.43), (0.26, 0.44)),
        ([(5, 5)] * 40, 0.3, (0.3, 0.3), (0.3, 0.3)),
        ([(95, 95), (12, 12)], 0.1, (12 / 107,) * 2, (12 / 107,) * 2),
        ([(60, 60), (40, 40)], 0.1, (0.4, 0.4), (0.4, 0.4)),
        ([(100, 100)], 0.1, (0, 0), (0, 0)),  # one side alone would be empty
        ([(90, 90), *[(2, 2)] * 5], 0.3, (0.1, 0.1), (0.1, 0.1)),
    ],
)
def test_the_share_is_the_nearest_that_whole_groups_give(
    sizes: list[tuple[int, int]],
    fraction: float,
    of_prompts: tuple[float, float],
    of_rows: tuple[float, float],
) -> None:
    groups = groups_of(*sizes)
    held_out = draw_groups(groups, fraction)
    lowest, highest = of_prompts
    assert lowest - 1e-9 <= len(held_out) / len(groups.rows) <= highest + 1e-9
    lowest, highest = of_rows
    rows = sum(groups.rows[name] for name in held_out)
    assert lowest - 1e-9 <= rows / groups.rows.total() <= highest + 1e-9


def test_rows_that_are_added_to_many_groups_change_few_sides() -> None:
    drawn = random.Random(1)
    sizes = [(drawn.randrange(2, 9),) * 2 for _ in range(200)]
    groups = groups_of(*sizes)
    before = draw_groups(groups, FRACTION)
    grown = [(size + drawn.randrange(2), size + 1) for size, _ in sizes]
    after = draw_groups(groups_of(*grown), FRACTION)
    stayed = after & groups.rows.keys()
    assert len(before ^ stayed) <= 0.1 * len(before)


def test_the_log_says_the_shares_of_prompts_and_of_rows_that_were_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, prompts = save_pairs(tmp_path / "rows", support_rows(1000))
    report = split_rows(file, Pair, prompts, 0.1)
    assert report.rows == len(load(file, Pair)) == 1000
    with caplog.at_level(logging.INFO):
        report.report("pairs.validation_fraction", work(tmp_path / "out"))
    [line] = caplog.messages
    assert f"{report.held_out_conversations / report.conversations:.1%}" in line
    assert f"{report.held_out / 1000:.1%}" in line
    assert 0.05 <= report.held_out / 1000 <= 0.2
    assert 0.05 <= report.held_out_conversations / report.conversations <= 0.2


def test_the_order_of_the_rows_changes_no_side(tmp_path: Path) -> None:
    rows = support_rows(120)
    file, prompts = save_pairs(tmp_path / "first", rows)
    split_rows(file, Pair, prompts, FRACTION)
    random.Random(0).shuffle(rows)
    other, prompts = save_pairs(tmp_path / "other", rows)
    split_rows(other, Pair, prompts, FRACTION)
    assert side_by_id(file) == side_by_id(other)
    assert {*side_by_id(file).values()} == {"train", "validation"}


def test_rows_of_their_own_keep_the_side_that_they_have_alone(tmp_path: Path) -> None:
    drawn = random.Random(3)
    rows = list[dict[str, Any]]()
    for number in range(60):
        texts = [" ".join(f"w{drawn.randrange(9999)}" for _ in range(12)) for _ in range(3)]
        names = ("customer_message", *SIDES)
        rows.append(dict(zip(names, texts, strict=True)) | {"number": number})
    file, prompts = save_pairs(tmp_path / "alone", rows)
    report = split_rows(file, Pair, prompts, FRACTION)
    alone = side_by_id(file)
    prompt_by_id = {prompt.id: prompt for prompt in prompts}
    for pair in Records(file, Pair):
        assert pair.split == draw_side(prompt_by_id[pair.prompt_id], FRACTION)
    assert (report.groups, report.repeats) == (0, 0)
    file, prompts = save_pairs(tmp_path / "among", [*support_rows(80), *rows])
    split_rows(file, Pair, prompts, FRACTION)
    assert alone.items() <= side_by_id(file).items()


def test_where_all_rows_are_near_equal_the_repeats_are_counted_and_told(tmp_path: Path) -> None:
    texts = ("We sent it on Monday and it arrives within the week, so please wait for it.", "Wait.")
    names = [f"order {i}" for i in range(40)]
    prompts = [
        Example(n, [{"role": "user", "content": n}], None, "s", "t", "preference") for n in names
    ]
    candidates = [candidate(name, text) for name in names for text in texts]
    judgements = [
        Judgement(name, "dataset", a=better.candidate_id, b=worse.candidate_id, preference="a")
        for name, better, worse in zip(names, candidates[::2], candidates[1::2], strict=True)
    ]
    pool = save_pool(tmp_path / "pool", prompts, candidates, judgements)
    cfg: Pairs = block(strategy=Strategy.all, unfinished=Unfinished.keep)
    out = work(tmp_path / "out")
    metrics = pairs.run(replace(cfg, validation_fraction=FRACTION), {"judged": pool}, out)
    held_out = [p for p in Records(out / "pairs.parquet", Pair) if p.split == "validation"]
    assert 0 < metrics["held_out"] == metrics["repeats"] == len(held_out) < 40
    assert all(pair.repeats for pair in held_out)
    [warning] = out.warnings
    assert f"{metrics['repeats']} of {metrics['held_out']}" in warning
    assert f"{metrics['repeats']} repeat" in metrics["summary"]


def test_near_equal_completions_with_a_label_are_on_one_side(tmp_path: Path) -> None:
    prompts, rows = list[Example](), list[UnpairedPreference]()
    for number, row in enumerate(support_rows(100)):
        messages = [{"role": "user", "content": row["customer_message"]}]
        prompts.append(Example(prompt_id(messages), messages, None, "s", "t", "preference"))
        side = SIDES[number % 2]
        completion = [{"role": "assistant", "content": row[side]}]
        rows.append(
            UnpairedPreference(
                str(number),
                prompts[-1].id,
                messages,
                completion,
                side == "chosen",
                None,
                "dataset",
                str(number),
                "train",
            )
        )
    file = tmp_path / "unpaired.parquet"
    save(file, rows, UnpairedPreference)
    report = split_rows(file, UnpairedPreference, prompts, FRACTION)
    stored = load(file, UnpairedPreference)
    training_texts = [word_pairs(text_of(row)) for row in stored if row.split == "train"]
    held_out = [word_pairs(text_of(row)) for row in stored if row.split == "validation"]
    assert len(held_out) == report.held_out > 0
    assert report.repeats == 0
    for text in held_out:
        assert max(jaccard(text, other) for other in training_texts) < ALIKE
