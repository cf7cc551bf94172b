"""Checks of a model that was trained elsewhere: what each says of figures and files that are made by hand."""

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from stages.base import build_random_model
from stages.config.blocks.models import Auto, RandomInit
from stages.evaluation.claims import Claim, Word
from stages.evaluation.pair_groups import (
    LENGTH_COLUMNS,
    LONGER,
    PairMargin,
    groups_of_column,
    mark_reversed,
)
from stages.evaluation.results import Divergence, PairGroup, PairGroups
from stages.evaluation.stored_tensors import spread
from stages.extras.examine.findings import behaviour, forms, training_files, weights
from stages.extras.examine.findings.answer_readings import Answers, Comparison, LeftToEnd, Readings
from stages.extras.examine.findings.faults import CHECKS, examine
from stages.extras.examine.findings.finding import TEXTS, Finding, NotEnough, State, Verdict
from stages.extras.examine.findings.sides import Examined, Side
from stages.extras.examine.folders.difference import Level, Row
from stages.models.chat_templates import establish_contract
from stages.models.loading import load_model
from tests.evaluation.made_results import intervals, learnt, results
from tests.rows import candidate

COUNT = 40  # answers, which vary a little


def around(value: float, spread: float = 0.01) -> list[float]:
    draw = random.Random(0)
    return [value + draw.uniform(-spread, spread) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights that answers in ChatML."""
    folder = tmp_path_factory.mktemp("model")
    random_model, tokenizer = build_random_model(RandomInit(32, 2, 2, 300, 0))
    establish_contract(tokenizer, Auto(), True, len(tokenizer)).save(folder)
    random_model.save_pretrained(folder)
    return folder


@pytest.fixture
def found(model: Path) -> Examined:
    """An examination of a model beside itself."""
    sides = [Side(name, model, model, "F32", [], place=name) for name in ("start", "trained")]
    in_order = (0.9, 0.8, 0.95)
    figures = learnt({"policy": in_order}, of="60 held-out pairs", prompts=60)
    figures = replace(figures, sum=intervals({"sft": in_order}), by=PairGroups(0.0, []))
    evaluated = results(learnt=figures, kl={"policy": Divergence(0.1, 1.0, 60)})
    return Examined(*sides, pairs=[], adapter=None, results=evaluated, readings=sound_readings())


def change_learnt(found: Examined, **changes: Any) -> None:
    """Change figures of held-out pairs in the results of an examination."""
    assert found.results.learnt
    found.results = replace(found.results, learnt=replace(found.results.learnt, **changes))


def sound_readings(**changes: Any) -> Readings:
    """Readings of a sound training: likelier answers, which end as often as the start's."""
    before = Answers(around(-0.5), around(0.9))
    after = Answers(around(-0.3), around(0.9))
    lengths = [*range(2, COUNT + 2)]
    read = Readings([], before, after, lengths)
    read.pairs = [None] * COUNT  # type: ignore[list-item]  # only counted
    return replace(read, **changes)


def names(findings: list[Finding]) -> list[tuple[str, bool]]:
    return [(finding.name, finding.is_fault) for finding in findings]


# --- ends


def test_ends_that_fell_are_shown_and_blamed_only_if_its_own_answers_go_on(found: Examined) -> None:
    assert behaviour.ends(found) == []
    fell = Answers(around(-0.3), around(0.24))
    longer = LeftToEnd(128, [True] * 8, [True] * 8)
    found.readings = sound_readings(after=fell, left=longer)
    [finding] = behaviour.ends(found)
    assert names([finding]) == [("ends_fell", False)]
    assert "24" in finding.seen
    assert "90" in finding.seen
    found.readings = sound_readings(after=fell, left=longer, instead={"newline": around(0.6)})
    assert "'newline' in 60%" in behaviour.ends(found)[0].seen
    assert finding.interval
    assert finding.interval.high < -0.6
    found.readings = sound_readings(after=fell, left=replace(longer, after=[False] * 8))
    [finding] = behaviour.ends(found)
    assert names([finding]) == [("answers_go_on", True)]
    assert "8 answers with room for 128 tokens it ends 0" in finding.seen


def test_the_end_is_not_blamed_where_the_start_goes_on_too_or_the_model_is_damaged(
    found: Examined,
) -> None:
    fell = Answers(around(-0.3), around(0.05))
    found.readings = sound_readings(after=fell, left=LeftToEnd(128, [False] * 8, [False] * 8))
    assert names(behaviour.ends(found)) == [("ends_fell", False)]
    never = around(0.002, 0.001)
    left = LeftToEnd(128, [False] * 8, [True] + [False] * 7)
    for nats, is_fault in ((-0.49, False), (-0.3, True)):  # of answers that were learnt, or not
        before, after = Answers(around(-0.5), never), Answers(around(nats), never)
        found.readings = sound_readings(before=before, after=after, left=left)
        assert names(behaviour.ends(found)) == [("answers_go_on", is_fault)]
    damaged = Answers(around(-5), around(0.05))
    found.readings = sound_readings(after=damaged, left=LeftToEnd(128, [False] * 8, [True] * 8))
    assert names(behaviour.ends(found)) == [("ends_fell", False)]
    assert names(behaviour.answers_unlikelier(found)) == [("answers_unlikelier", True)]


def test_answers_that_end_only_while_they_are_short_are_named_with_other_causes(
    found: Examined,
) -> None:
    ends = [0.9] * 20 + [0.01] * 20
    left = LeftToEnd(128, [False] * 8, [True] * 8)
    found.readings = sound_readings(after=Answers(around(-0.3), ends), left=left)
    [finding] = behaviour.ends(found)
    assert finding.name == "long_answers_go_on"
    assert len(finding.causes) > 1
    assert not finding.certain


def test_another_token_that_ends_answers_is_named(found: Examined) -> None:
    after = Answers(around(-0.3), [0.001] * COUNT)
    found.readings = sound_readings(after=after, instead={"<|endoftext|>": around(0.9)})
    [finding] = behaviour.ends(found)
    assert finding.name == "answers_go_on"
    assert finding.causes == behaviour.OTHER_END
    assert "<|endoftext|>" in finding.seen


# --- forms


def comparison(own: float, other: float, own_before: float, other_before: float) -> Comparison:
    figures = (own, other, own_before, other_before)
    draw = random.Random(1)
    return Comparison(
        "a form",
        {"a form": other},
        1,
        *([x + draw.gauss(0, 0.02) for _ in range(32)] for x in figures),
    )


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((-1.0, -0.4, -0.2, -1.5), [("likelier_in_another_form", True)]),
        ((-0.2, -1.3, -0.2, -1.4), []),  # sound
        ((-0.30, -0.28, -0.2, -1.7), [("likelier_in_another_form", False)]),  # as likely
        ((-6.5, -5.0, -0.1, -2.5), [("likelier_in_another_form", False)]),  # damaged
        ((-0.5, -0.3, -1.0, -0.6), [("likelier_in_another_form", False)]),  # the start's own
        ((-0.99, -0.78, -1.0, -0.8), [("likelier_in_another_form", False)]),  # as the start
    ],
)
def test_another_form_is_a_fault_only_where_the_training_made_it_the_likelier_one(
    figures: tuple[float, ...], expected: list[Any], found: Examined
) -> None:
    found.readings = sound_readings(form=comparison(*figures))
    assert names(behaviour.other_form(found)) == expected


def test_too_few_answers_are_not_enough_to_say(found: Examined) -> None:
    found.readings = None
    for check in (behaviour.ends, behaviour.other_form, behaviour.answers_unlikelier):
        with pytest.raises(NotEnough, match=r"label\.path"):
            check(found)


def test_answers_that_moved_from_its_template_to_another_form_are_shown(found: Examined) -> None:
    for figures, expected in {
        (-0.32, -0.99, -0.10, -1.70): [("moved_to_another_form", False)],
        (-0.05, -1.10, -0.10, -1.42): [],  # sound: both became likelier
        (-0.60, -2.40, -0.10, -1.42): [],  # both became unlikelier
    }.items():
        found.readings = sound_readings(form=comparison(*figures))
        findings = behaviour.other_form(found)
        assert names(findings) == expected
        assert all(finding.interval for finding in findings)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((0.002, 0.97), [("likelier_with_other_bos", True)]),
        ((0.002, 0.21), [("likelier_with_other_bos", False)]),
        ((0.9, 0.97), []),  # as its start
        ((0.002, 0.0001), []),
        (None, []),  # no BOS
    ],
)
def test_bos_that_is_expected_behind_bos_shows_rows_with_two(
    probabilities: tuple[float, float] | None, expected: list[Any], found: Examined
) -> None:
    found.readings = sound_readings(second_bos=probabilities)
    findings = behaviour.other_bos(found)
    assert names(findings) == expected
    assert not any(finding.certain for finding in findings)


# --- preferences


def test_a_share_in_order_stands_with_its_nats_and_tiny_ones_moved_nothing(found: Examined) -> None:
    change_learnt(found, moved={"policy": 5e-6})
    [finding] = behaviour.learnt(found)
    assert finding.name == "moved_nothing"
    assert "5e-06" in finding.seen
    change_learnt(found, moved={"policy": 0.02})
    assert behaviour.learnt(found) == []
    change_learnt(found, ratio=intervals({"policy": (0.05, 0.01, 0.1)}))
    [finding] = behaviour.learnt(found)
    assert names([finding]) == [("preferences_reversed", True)]
    assert finding.certain
    assert "0.02 nats" in finding.seen
    assert "0.1" in finding.seen  # KL
    assert len(finding.causes) > 1
    unlikelier = Answers(around(-5), around(0.9))
    found.readings = sound_readings(
        after=unlikelier
    )  # by reversed labels, which pull answers apart
    assert names(behaviour.learnt(found)) == [("preferences_reversed", True)]
    change_learnt(found, by=PairGroups(2.0, []))  # a damaged model: both answers fell
    assert names(behaviour.learnt(found)) == [("preferences_reversed", False)]
    found.readings = sound_readings()
    change_learnt(found, ratio=intervals({"policy": (0.4, 0.31, 0.49)}))
    assert not behaviour.learnt(found)[0].certain


def margins(counts: dict[str, tuple[int, int]]) -> tuple[list[str | None], list[PairMargin]]:
    """Return a column, and rows: by value, how many pairs of how many are in order."""
    values, rows = list[str | None](), list[PairMargin]()
    for value, (right, pairs) in counts.items():
        for number in range(pairs):
            in_order = float(number < right)
            prompt = f"{value} {number}"
            rows.append(PairMargin(prompt, in_order, in_order - 0.5, 0.0, (4.0, 5.0, 6.0)))
            values.append(value)
    return values, rows


def groups(counts: dict[str, tuple[int, int]]) -> dict[str, PairGroup]:
    values, rows = margins(counts)
    of_column = groups_of_column("language", values, rows, 0.95)
    mark_reversed(of_column, rows)
    return {each.group.value: each.group for each in of_column}


def test_a_group_with_reversed_labels_is_found_for_certain() -> None:
    by_language = groups({"de": (1, 42), "en": (47, 48)})
    assert by_language["de"].is_reversed
    assert by_language["de"].is_certain
    assert (by_language["de"].right, by_language["de"].pairs) == (1, 42)
    assert by_language["de"].share.high < 0.5 < by_language["de"].rest.low
    assert not by_language["en"].is_reversed


def test_other_groups_are_no_faults() -> None:
    for counts in (
        {"de": (25, 42), "en": (47, 48)},  # lower
        {"de": (1, 42), "en": (2, 48)},  # all reversed: no group's fault
        {"de": (1, 3), "en": (47, 48)},  # too few
    ):
        assert not any(group.is_reversed for group in groups(counts).values())
    draw = random.Random(0)
    reversed_by_chance = 0
    for _ in range(200):
        counts = {str(i): (sum(draw.random() < 0.6 for _ in range(12)), 12) for i in range(8)}
        reversed_by_chance += any(group.is_reversed for group in groups(counts).values())
    assert reversed_by_chance <= 4


def test_a_group_that_overlaps_with_a_clearer_one_is_not_blamed_too() -> None:
    languages, rows = margins({"de": (0, 40), "en": (40, 40)})
    lengths: list[str | None] = ["long" if i < 30 or i > 78 else "short" for i in range(80)]
    both = groups_of_column("language", languages, rows, 0.95)
    both += groups_of_column("length", lengths, rows, 0.95)
    mark_reversed(both, rows)
    assert [each.group.value for each in both if each.group.is_reversed] == ["de"]


def test_a_lower_group_is_shown_and_a_reversed_one_is_a_fault(found: Examined) -> None:
    by_language = groups({"de": (1, 42), "en": (47, 48), "fr": (20, 40)})
    change_learnt(found, by=PairGroups(0.0, [*by_language.values()]))
    first, *others = behaviour.group_reversed(found)
    assert names([first]) == [("group_reversed", True)]
    assert "language = de: 1 of 42" in first.seen
    assert all(not finding.is_fault for finding in others)


def test_a_model_that_goes_by_length_has_no_reversed_labels(found: Examined) -> None:
    lengths = ["rejected"] * 30 + ["chosen"] * 30
    thirds = ["short"] * 28 + ["long"] * 32
    rows = list[PairMargin]()
    for number, length in enumerate(lengths):
        in_order = float(length == "chosen")
        rows.append(PairMargin(str(number), in_order, in_order, 0.0, (4.0, 5.0, 6.0)))
    both = groups_of_column(LONGER, lengths, rows, 0.95)
    both += groups_of_column(LENGTH_COLUMNS[1], thirds, rows, 0.95)
    mark_reversed(both, rows)
    reversed_share = intervals({"policy": (0.34, 0.22, 0.47)})
    change_learnt(found, ratio=reversed_share, by=PairGroups(0.0, [each.group for each in both]))
    assert names(behaviour.learnt(found)) == [("preferences_reversed", False)]
    assert "the longer answer = chosen: 30 of 30" in behaviour.learnt(found)[0].seen
    assert ("group_reversed", False) in names(behaviour.group_reversed(found))
    assert not any(finding.is_fault for finding in behaviour.group_reversed(found))
    change_learnt(found, ratio=reversed_share, by=PairGroups(0.0, []))
    assert names(behaviour.learnt(found)) == [("preferences_reversed", True)]


# --- loops, distance


def test_loops_count_against_those_of_the_start(found: Examined) -> None:
    looping = candidate("p", "again " * 60, 60)
    fine = candidate("p", "Blue is a colour of the sky.", 7)
    prompts = [str(i) for i in range(COUNT)]
    found.before.answers = dict.fromkeys(prompts, looping)
    found.after.answers = dict.fromkeys(prompts, looping)
    assert behaviour.loops(found) == []
    found.before.answers = dict.fromkeys(prompts, fine)
    [finding] = behaviour.loops(found)
    assert finding.certain
    found.before.answers = {}
    with pytest.raises(NotEnough):
        behaviour.loops(found)


def test_a_learning_rate_is_a_cause_only_if_a_training_log_has_it(
    found: Examined, tmp_path: Path
) -> None:
    found.results = replace(found.results, kl={"policy": Divergence(0.74, 7.4, 60)})
    [finding] = behaviour.far(found)
    assert names([finding]) == [("far", False)]
    assert "0.74 nats a token" in finding.seen
    assert "rate" not in " ".join(finding.causes)
    (tmp_path / "checkpoint-3").mkdir()
    history = [{"learning_rate": 0.02, "step": 1}, {"loss": 1.0}, {"learning_rate": 1e-3}]
    log = {"log_history": history}
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(log))
    folders = training_files.folders_of(str(tmp_path), "examine.model")
    found.largest_rate = training_files.largest_rate(folders)
    [finding] = behaviour.far(found)
    assert "0.02" in finding.causes[0]
    found.readings = sound_readings(after=Answers(around(-3), around(0.9)))
    assert names(behaviour.far(found)) == [("far", True)]


# --- weights


def changed(model: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """Return a copy of a model with other tensors."""
    made = Path(shutil.copytree(model, folder))
    tensors = load_file(model / "model.safetensors")
    others = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(others, made / "model.safetensors", {"format": "pt"})
    return made


def test_a_change_of_low_rank_adds_a_merged_adapter_to_what_would_show_the_same(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    def with_rank_two(name: str, old: torch.Tensor) -> torch.Tensor:
        if "proj" not in name:
            return old
        generator = torch.Generator().manual_seed(0)
        factors = [torch.randn(size, 2, generator=generator) for size in old.shape]
        return old + 0.1 * factors[0] @ factors[1].T

    def with_full_rank(name: str, old: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return old + 0.1 * torch.randn(old.shape, generator=generator)

    found.results = replace(found.results, kl={"policy": Divergence(2.0, 20.0, 60)})
    found.readings = sound_readings(after=Answers(around(-5), around(0.9)))
    whole = changed(model, tmp_path / "whole", with_full_rank)
    merged = changed(model, tmp_path / "merged", with_rank_two)
    for check in (behaviour.far, behaviour.answers_unlikelier):
        found.after = replace(found.after, came=whole)
        [without] = check(found)
        found.after = replace(found.after, came=merged)
        [finding] = check(found)
        assert list(finding.causes[1:]) == list(without.causes)
        assert "rank 2" in finding.causes[0]
        assert "examine.model" in finding.causes[0]
    found.merged_adapter = tmp_path  # it is compared by a check of its own
    assert "rank" not in " ".join(behaviour.far(found)[0].causes)


def test_norms_alone_are_a_training_and_rounding_is_none(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    [finding] = weights.unchanged(found)
    assert finding.certain
    norms = changed(
        model, tmp_path / "norms", lambda name, old: old * (1 + 0.01 * ("norm" in name))
    )
    found.after = replace(found.after, came=norms)
    assert weights.unchanged(found) == []
    assert weights.points_elsewhere(found) == []
    rounded = changed(model, tmp_path / "rounded", lambda name, old: old.bfloat16().float())
    found.after = replace(found.after, came=rounded)
    assert names(weights.unchanged(found)) == [("unchanged", True)]
    other = changed(model, tmp_path / "other", lambda name, old: torch.randn_like(old))
    found.after = replace(found.after, came=other)
    assert names(weights.points_elsewhere(found)) == [("points_elsewhere", True)]


def test_layers_are_compared_whatever_a_library_calls_them(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    def renamed(folder: Path, old: str, new: str, change: float) -> Path:
        made = Path(shutil.copytree(model, folder))
        tensors = load_file(model / "model.safetensors")
        others = {name.replace(old, new): (1 + change) * each for name, each in tensors.items()}
        save_file(others, made / "model.safetensors", {"format": "pt"})
        return made

    found.before = replace(found.before, came=renamed(tmp_path / "0", "model.layers", "h", 0.0))
    found.after = replace(found.after, came=renamed(tmp_path / "1", "model.layers", "h", 0.01))
    assert weights.points_elsewhere(found) == []
    assert weights.update_figures(found)
    found.after = replace(found.after, came=renamed(tmp_path / "2", "model", "body", 0.01))
    with pytest.raises(NotEnough):
        weights.points_elsewhere(found)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 32, "layers.1.mlp.up_proj": 4}},
    "rank_pattern": {"rank_pattern": {"v_proj": 2}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


def make_adapter(model: Path, folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    kind = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    config = LoraConfig(r=4, lora_alpha=8, **kind, **options)
    adapted = get_peft_model(load_model(model), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_on_its_start_is_sound_whatever_its_patterns(
    variant: str, found: Examined, model: Path, tmp_path: Path
) -> None:
    make_adapter(model, tmp_path, **VARIANTS[variant])
    found.after = replace(found.after, came=tmp_path / "merged")
    found.adapter = tmp_path / "adapter"
    assert weights.points_elsewhere(found) == weights.merged_twice(found) == []
    [[_, update]] = weights.update_figures(found).values()
    least = 2 if variant == "rank_pattern" else 4
    assert variant == "dora" or f"of rank {least} to 4" in update  # DoRA scales every row
    found.adapter, found.merged_adapter = None, tmp_path / "adapter"
    assert weights.merged_at_another_scale(found) == []
    folders = training_files.folders_of(str(tmp_path), "examine.model")
    assert training_files.merged_adapter(folders) == tmp_path / "adapter"


@pytest.mark.parametrize(
    ("times", "shown"), [(0.5, "0.5"), (2.0, "2"), (4.0, "4"), (0.125, "0.125")]
)
def test_weights_that_hold_an_adapter_by_another_factor_are_a_fact(
    times: float, shown: str, found: Examined, model: Path, tmp_path: Path
) -> None:
    make_adapter(model, tmp_path, alpha_pattern={"q_proj": 32})
    before = load_file(model / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")

    def by_times(name: str, old: torch.Tensor) -> torch.Tensor:
        return old + times * (merged[name] - before[name])

    folder = changed(model, tmp_path / "scaled", by_times)
    found.after = replace(found.after, came=folder)
    found.merged_adapter = tmp_path / "adapter"
    [finding] = weights.merged_at_another_scale(found)
    assert finding.certain
    assert f"{shown} times" in finding.seen
    rounded = changed(folder, tmp_path / "rounded", lambda name, old: old.bfloat16().float())
    found.after = replace(found.after, came=rounded)
    [finding] = weights.merged_at_another_scale(found)
    assert f"hold {shown}" in finding.seen
    whole = changed(tmp_path / "merged", tmp_path / "bf16", lambda name, old: old.bfloat16())
    found.after = replace(found.after, came=whole)
    assert weights.merged_at_another_scale(found) == []


def test_layers_are_drawn_from_all_parts_and_kept_as_numbers(model: Path, tmp_path: Path) -> None:
    for count in (1, 23, 24, 25, 47, 48, 49, 500):
        chosen = spread([str(i) for i in range(count)], 24)
        assert min(count, 12) <= len(chosen) <= 24
        assert int(chosen[-1]) >= (count - 1) / 2
    make_adapter(model, tmp_path)
    changes = weights.read_changes(tmp_path / "adapter", model, tmp_path / "merged")
    assert len(changes) == 14
    for change in changes:
        assert all(isinstance(number, float) for number in vars(change).values())
        assert change.times == pytest.approx(1.0, abs=1e-3)
        assert change.below_adapter().times == pytest.approx(0.0, abs=1e-3)


def test_merged_weights_in_the_folder_of_their_adapter_are_compared(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    make_adapter(model, tmp_path)
    folder = Path(shutil.copytree(tmp_path / "adapter", tmp_path / "both"))
    folders = training_files.folders_of(str(folder), "examine.model")
    assert training_files.merged_adapter(folders) is training_files.merged_weights(folders) is None
    shutil.copyfile(model / "model.safetensors", folder / "model.safetensors")
    assert (
        training_files.merged_adapter(folders) == training_files.merged_weights(folders) == folder
    )
    found.merged_adapter = found.merged_weights = folder
    [finding] = weights.merged_at_another_scale(found)
    assert "0 times" in finding.seen


def test_layers_without_the_adapter_and_a_second_merge_are_facts(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    make_adapter(model, tmp_path)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(model / "model.safetensors")

    def half(name: str, old: torch.Tensor) -> torch.Tensor:
        return merged[name] if "layers.0" in name else old

    found.after = replace(found.after, came=changed(model, tmp_path / "half", half))
    found.merged_adapter = tmp_path / "adapter"
    [finding] = weights.merged_at_another_scale(found)
    assert "7 of 14 layers" in finding.seen

    def twice(name: str, old: torch.Tensor) -> torch.Tensor:
        return old + 2 * (merged[name] - before[name])

    found.after = replace(found.after, came=changed(model, tmp_path / "twice", twice))
    found.adapter, found.merged_adapter = tmp_path / "adapter", None
    assert names(weights.merged_twice(found)) == [("merged_twice", True)]
    assert weights.points_elsewhere(found) == []
    other = changed(model, tmp_path / "elsewhere", lambda name, old: merged[name] + 0.1)
    found.after = replace(found.after, came=other)
    assert names(weights.points_elsewhere(found)) == [("points_elsewhere", True)]


# --- the whole


def row(key: str, level: Level) -> Row:
    return Row(key, level, ["before", "after"], "what it does")


def test_what_files_and_checks_both_see_is_told_once_and_counted(found: Examined) -> None:
    found.folder_titles = ["start", "trained"]
    found.folder_rows = [
        row("weights: NaN or infinite", Level.breaks),
        row("weights: nothing changed", Level.changes),
        row("generation.repetition_penalty", Level.changes),
        row("weights: type", Level.differs),
    ]
    examination = examine(found)
    titles = {finding.title: finding.claim.word for finding in examination.findings}
    assert titles == {
        "weights: NaN or infinite": Word.certain_fault,
        "unchanged": Word.certain_fault,
        "generation.repetition_penalty": Word.differs,
    }
    sentence = examination.sentence("trained", "start")
    assert sentence.startswith("2 faults")
    assert "weights: NaN or infinite" in sentence


def test_a_part_of_the_folders_that_was_not_compared_is_not_enough(found: Examined) -> None:
    found.folder_titles = ["start", "trained"]
    found.folder_rows = [
        row("tokenizer", Level.unknown),
        row("generation.repetition_penalty", Level.changes),
    ]
    examination = examine(found)
    states = {check.name: check.state for check in examination.checks}
    assert states["folder_parts"] is State.not_enough
    assert states["folder_keys"] is State.difference


def test_a_finding_is_a_claim_that_is_published_whole(found: Examined) -> None:
    change_learnt(found, ratio=intervals({"policy": (0.05, 0.01, 0.1)}))
    [finding] = behaviour.learnt(found)
    assert finding.claim == Claim(Word.certain_fault, finding.seen, "60 held-out pairs")
    record = finding.as_record()
    assert record["claim"]["word"] == Word.certain_fault
    assert (record["is_fault"], record["certain"]) == (True, True)
    assert record["word"] == finding.claim.says("finding")


def test_the_verdict_is_faults_none_or_not_enough(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    changed_model = changed(model, tmp_path / "trained", lambda name, old: old * 1.001)
    found.after = replace(found.after, came=changed_model)
    fine = candidate("p", "Blue is a colour of the sky.", 7)
    for side in (found.before, found.after):
        side.answers = {str(i): fine for i in range(COUNT)}
    found.readings = sound_readings(form=comparison(-0.2, -1.3, -0.2, -1.4))
    by_language = [*groups({"de": (40, 42), "en": (47, 48)}).values()]
    change_learnt(found, by=PairGroups(0.0, by_language))
    examination = examine(found)
    assert (examination.verdict, examination.findings) == (Verdict.none, [])
    record = examination.as_record()
    assert len(record["checks"]) == len(CHECKS)
    assert all(check["compares"] and check["blind"] for check in record["checks"])
    assert record["cannot_tell"]
    assert str(len(CHECKS)) in examination.sentence("trained", "start")
    found.readings = None
    examination = examine(found)
    assert examination.verdict is Verdict.not_enough
    assert {check.state for check in examination.checks} == {State.nothing, State.not_enough}
    found.after = replace(found.after, came=model)
    examination = examine(found)
    assert examination.verdict is Verdict.faults
    assert [finding.name for finding in examination.faults] == ["unchanged"]


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_figures_that_are_not_finite_are_no_answer(number: float, found: Examined) -> None:
    of_pairs = [behaviour.learnt, behaviour.group_reversed]
    of_answers = [
        behaviour.ends,
        behaviour.other_form,
        behaviour.other_bos,
        behaviour.answers_unlikelier,
    ]
    spoilt = [number, *around(-0.3)[1:]]
    form = comparison(-0.2, -1.3, -0.2, -1.4)
    for readings in (
        sound_readings(form=form, after=Answers(spoilt, around(0.9))),
        sound_readings(form=form, before=Answers(around(-0.5), spoilt)),
        sound_readings(form=replace(form, other_after=spoilt)),
        sound_readings(form=form, bos=replace(form, own_before=spoilt)),
        sound_readings(form=form, second_bos=(0.1, number)),
    ):
        found.readings = readings
        for check in of_answers:
            with pytest.raises(NotEnough, match="finite"):
                check(found)
    change_learnt(found, moved={"policy": number})
    found.results = replace(found.results, kl={"policy": Divergence(number, number, 60)})
    for check in (*of_pairs, behaviour.far):
        with pytest.raises(NotEnough, match="finite"):
            check(found)


def test_a_check_of_behaviour_that_could_not_look_says_so(found: Examined) -> None:
    assert behaviour.other_bos(found) == [], "its tokenizer has no BOS"
    found.after.contract.tokenizer.bos_token = "<|im_end|>"
    with pytest.raises(NotEnough, match=r"label\.path"):
        behaviour.other_bos(found)
    found.results = replace(found.results, kl={})
    with pytest.raises(NotEnough, match=r"label\.path"):
        behaviour.far(found)
    change_learnt(found, by=PairGroups(0.0, []))
    with pytest.raises(NotEnough, match=r"label\.path"):
        behaviour.group_reversed(found)


def test_a_check_of_files_that_could_not_look_says_so(
    found: Examined, model: Path, tmp_path: Path
) -> None:
    without_weights = Path(shutil.copytree(model, tmp_path / "without"))
    (without_weights / "model.safetensors").unlink()
    cut_off = Path(shutil.copytree(model, tmp_path / "cut_off"))
    (cut_off / "model.safetensors").write_bytes(b"cut off")
    for folder in (without_weights, cut_off):
        found.before, found.after = (
            replace(found.before, came=folder),
            replace(found.after, came=folder),
        )
        with pytest.raises(NotEnough):
            weights.unchanged(found)
    found.before = replace(found.before, came=model)
    found.after = replace(found.after, came=without_weights)
    with pytest.raises(NotEnough):
        weights.rows_untrained(found)
    not_finite = changed(model, tmp_path / "not_finite", lambda name, old: old * math.nan)
    found.after = replace(found.after, came=not_finite)
    with pytest.raises(NotEnough):
        weights.points_elsewhere(found)
    refusing = Path(shutil.copytree(model, tmp_path / "refusing"))
    (refusing / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    found.after = replace(found.after, came=refusing)
    with pytest.raises(NotEnough):
        forms.template_changed(found)


def test_every_finding_has_a_command_that_tells_its_causes_apart(found: Examined) -> None:
    assert CHECKS.keys() == TEXTS["checks"].keys()
    found.again = "python run.py stage=examine"
    for name in TEXTS["findings"]:
        finding = found.finding(name, "seen", "40 answers")
        assert finding.apart
        assert "{" not in finding.clause
        assert "learning rate" not in finding.clause
