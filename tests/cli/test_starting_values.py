"""The table of starting values: complete, in order, and with a source in every row."""

from math import inf

import pytest

from stages.cli.resolve import resolve_rates
from stages.cli.starting_values import PUBLISHED_RUNS, count_parameters
from tests.helpers import refused, settings


@pytest.mark.parametrize("objective", PUBLISHED_RUNS)
def test_every_size_has_a_row_with_a_source_and_larger_models_lower_rates(objective: str) -> None:
    assert [*PUBLISHED_RUNS[objective]] == ["none", "lora"]
    for rows in PUBLISHED_RUNS[objective].values():
        bounds = [row["below"] for row in rows]
        rates = [row["learning_rate"] for row in rows]
        assert bounds == sorted({*bounds}) and bounds[-1] == inf
        assert rates == sorted({*rates}, reverse=True)
        assert all(
            row["source"] and row.keys() <= {"below", "learning_rate", "beta", "source"}
            for row in rows
        )


@pytest.mark.parametrize(
    ("typed", "rates"),
    [
        (("model=llama31_8b", "sft.adapter=lora", "dpo.adapter=lora"), {"sft": 2e-4, "dpo": 5e-6}),
        (("recipe=tiny", "sft.train=true"), {"sft": 1e-4, "dpo": 1e-5}),
    ],
)
def test_auto_is_the_tables_rate_for_the_size_and_the_adapter(
    typed: tuple[str, ...], rates: dict[str, float]
) -> None:
    automatic = [f"{name}.learning_rate=auto" for name in rates]
    cfg = settings(*typed, *automatic)
    resolve_rates(cfg)
    assert {name: vars(cfg)[name].learning_rate for name in rates} == rates


@pytest.mark.parametrize(
    "typed",
    [
        ("kto.learning_rate=auto",),
        ("sft.learning_rate=much",),
        ("sft.learning_rate=auto", "model.path=someone/on-the-hub"),
    ],
)
def test_auto_without_a_number_is_refused(typed: tuple[str, ...]) -> None:
    assert refused(*typed).startswith(f"{typed[0]}: ")


def test_sizes_are_those_that_the_models_are_called_by() -> None:
    for option, billions in (
        ("llama31_8b", 8.0),
        ("embedded", 0.135),
    ):
        parameters = count_parameters(settings(f"model={option}").model)
        assert (parameters or 0) / 1e9 == pytest.approx(billions, rel=0.03)
    assert count_parameters(settings("model.path=someone/on-the-hub").model) is None
