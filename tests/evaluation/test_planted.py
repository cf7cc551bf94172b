"""Models that plain loops trained with a planted fault, and sound ones: what an examination says of each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.evaluation.examined.finding import Examination
from tests.evaluation.planted_models import END, Planted, Request, headers, sharegpt, two_bos

Make = Callable[[Planted], Path]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


def long_answer(request: Request) -> str:
    """An answer that is long in half of the requests."""
    return " ".join([request.answer] * (8 if request.text.endswith("1.") else 1))


def longer_answer(request: Request) -> str:
    return " ".join([request.answer] * 6)


def names(examination: Examination) -> list[str]:
    return [finding.name for finding in examination.findings]


FAULTY: dict[str, tuple[str, Make]] = {
    "human and gpt": (
        "likelier_in_another_form",
        lambda at: at.sft("sharegpt", at.start, sharegpt),
    ),
    "headers": (
        "likelier_in_another_form",
        lambda at: at.sft("headers", at.base, headers, steps=150),
    ),
    "labels shifted twice": ("answers_unlikelier", lambda at: at.sft("shifted", at.start, shift=2)),
    "merged four times": (
        "answers_unlikelier",
        lambda at: at.update_times(at.dpo("once"), "four_times", 4.0),
    ),
    "another epsilon": (
        "answers_unlikelier",
        lambda at: at.with_config(at.dpo("small"), "epsilon", rms_norm_eps=0.5),
    ),
    "one language reversed": ("group_reversed", lambda at: at.dpo("de", reversed_in=["de"])),
    "all reversed": ("preferences_reversed", lambda at: at.dpo("all", reversed_in=["de", "en"])),
    "a beta of 50": ("moved_nothing", lambda at: at.dpo("beta", beta=50.0, rate=1e-9)),
}
SOUND: dict[str, Make] = {
    "norms alone": lambda at: at.sft("norms", at.start, trains=lambda name: "norm" in name),
    "answers longer than the preferences": lambda at: at.sft(
        "longer", at.start, answer=longer_answer, steps=120
    ),
    "preferences": lambda at: at.dpo("sound"),
    "the prompt too": lambda at: at.sft("whole", at.start, whole=True),
}


@pytest.mark.extended
@pytest.mark.parametrize("kind", FAULTY)
def test_a_planted_fault_is_seen_and_given_no_other_cause(kind: str, planted: Planted) -> None:
    finding_name, make = FAULTY[kind]
    folder = make(planted)
    examination = planted.examination(folder, planted.base if kind == "headers" else None)
    faults = {finding.name: finding for finding in examination.faults}
    assert {finding_name} <= faults.keys() <= {finding_name, "answers_unlikelier"}
    assert faults[finding_name].interval
    assert len(faults[finding_name].causes) > 1


# what is seen and shown with the start's figure, but is no fault by itself
SHOWN: dict[str, tuple[str, Make]] = {
    "half of the rows without their end": (
        "ends_fell",
        lambda at: at.sft("half", at.start, ends=lambda number: END if number % 2 else "\n"),
    ),
    "headers after chats": (
        "moved_to_another_form",
        lambda at: at.sft("headers_after_chats", at.start, headers),
    ),
    "two BOS": (
        "likelier_with_other_bos",
        lambda at: at.sft("two_bos", at.start, two_bos, whole=True),
    ),
}


@pytest.mark.extended
@pytest.mark.parametrize("kind", SHOWN)
def test_a_trace_of_a_planted_fault_is_shown_with_the_figure_of_the_start(
    kind: str, planted: Planted
) -> None:
    finding_name, make = SHOWN[kind]
    examination = planted.examination(make(planted))
    [finding] = [each for each in examination.findings if each.name == finding_name]
    assert planted.start.name in finding.seen
    assert len(finding.causes) > 1
    assert not finding.certain


@pytest.mark.extended
@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_training_has_no_fault(kind: str, planted: Planted) -> None:
    examination = planted.examination(SOUND[kind](planted))
    assert examination.faults == []
