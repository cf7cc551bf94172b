"""Models that plain loops trained with a planted fault, and sound ones: what an examination says of each."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stages.config.choices import Precision
from stages.extras.examine.findings.answer_forms import SPACED, Row
from stages.extras.examine.findings.answer_readings import Model, Reader, Readings, readings_of
from stages.extras.examine.findings.finding import Examination
from tests.extras.examine.planted_models import (
    END,
    HELD_OUT,
    Planted,
    Request,
    headers,
    pair_of,
    sharegpt,
    two_bos,
)

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
        lambda at: at.sft("headers_after_chats", at.start, headers, steps=30, rate=6e-3),
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
def test_a_space_before_every_answer_of_the_training_is_told_from_another_template(
    planted: Planted,
) -> None:
    spaced = planted.sft("spaced", planted.start, answer=lambda request: f" {request.answer}")
    examination = planted.examination(spaced)
    [finding] = [each for each in examination.faults if "form" in each.name]
    assert finding.name == "likelier_in_another_form"
    assert SPACED in finding.seen


@pytest.mark.extended
@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_training_has_no_fault(kind: str, planted: Planted) -> None:
    examination = planted.examination(SOUND[kind](planted))
    assert examination.faults == []


class Noting(Reader):
    """A reader that notes the rows that it scores, by its title."""

    scored: dict[str, list[Row]]

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        self.scored.setdefault(self.title, []).extend(rows)
        return super().score(rows)


def read_and_noted(planted: Planted, after: Path) -> tuple[Readings, dict[str, list[Row]]]:
    """Return the readings of HELD_OUT under both models, and the rows that each of them scored."""
    scored = dict[str, list[Row]]()

    def opened(folder: Path) -> Reader:
        reader = Noting("cpu", Precision.fp32, folder.name, folder)
        reader.scored = scored
        return reader

    models = list[Model]()
    for folder in (planted.start, after):
        side = planted.side(folder, folder)
        models.append(Model(side.published, side.contract, opened))
    read = readings_of([pair_of(request) for request in HELD_OUT], *models)
    assert read
    return read, scored


@pytest.mark.extended
def test_no_text_is_read_twice_and_of_many_forms_only_a_few_are_read_closely(
    planted: Planted,
) -> None:
    sound = planted.sft("read", planted.start)
    read, scored = read_and_noted(planted, sound)
    for rows in scored.values():
        texts = Counter(tuple(prompt + answer) for prompt, answer in rows)
        assert texts.most_common(1)[0][1] == 1
    assert read.form
    assert read.form.ways > len(read.form.tried)
    rows_of_answers = len(HELD_OUT)
    assert len(scored[sound.name]) < 4 * rows_of_answers
    # no figure of the start's in a form that the sound model finds far unlikelier would make a difference
    assert read.form.other_before == []
    assert len(scored[planted.start.name]) < 2 * rows_of_answers


@pytest.mark.extended
def test_the_answers_that_are_read_do_not_depend_on_the_order_of_the_pairs(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.extras.examine.findings.answer_readings.MOST_ANSWERS", 20)
    side = planted.side(planted.start, planted.start)
    model = Model(
        side.published, side.contract, lambda folder: Reader("cpu", Precision.fp32, "", folder)
    )
    pairs = [pair_of(request) for request in HELD_OUT]
    ids = list[list[str]]()
    for ordered in (pairs, pairs[::-1]):
        read = readings_of(ordered, model, model)
        assert read
        ids.append([pair.id for pair in read.pairs])
    assert ids[0] == ids[1][::-1]
    assert len(ids[0]) == 20
    assert ids[0] != [pair.id for pair in pairs[:20]]
