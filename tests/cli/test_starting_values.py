"""The table of starting values: complete, in order, and with a source in every row."""

import json
from math import inf
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stages.cli.starting_values import ROWS, count_parameters, resolve_rates, table_row
from stages.config.choices import Adapter
from stages.config.schema import CONF
from tests.helpers import refused, settings


@pytest.mark.parametrize("objective", ROWS)
def test_every_size_has_a_row_with_a_source_and_larger_models_lower_rates(objective: str) -> None:
    assert [*ROWS[objective]] == ["none", "lora"]
    for rows in ROWS[objective].values():
        bounds, rates = [row["below"] for row in rows], [row["learning_rate"] for row in rows]
        assert bounds == sorted({*bounds}) and bounds[-1] == inf
        assert rates == sorted({*rates}, reverse=True)
        assert all(
            row["source"] and row.keys() <= {"below", "learning_rate", "beta", "source"}
            for row in rows
        )
    for billions in (0.1, 0.36, 1.2, 7.2, 8.0, 70.6):
        whole, low_rank = (
            table_row(objective, each, int(billions * 1e9))
            for each in (Adapter.none, Adapter.qlora)
        )
        assert low_rank["learning_rate"] > whole["learning_rate"]


@pytest.mark.parametrize(
    ("typed", "rates"),
    [
        (("model=llama31_8b",), {"sft": 5e-6, "dpo": 5e-7}),
        (("model=llama31_8b", "sft.adapter=lora", "dpo.adapter=lora"), {"sft": 2e-4, "dpo": 5e-6}),
        (("model=llama31_8b", "align=grpo"), {"sft": 5e-6, "grpo": 1e-6}),
        (("recipe=tiny", "sft.train=true"), {"sft": 1e-4, "dpo": 1e-5}),
    ],
)
def test_auto_is_the_tables_rate_for_the_size_and_the_adapter(
    typed: tuple[str, ...], rates: dict[str, float], tmp_path: Path
) -> None:
    automatic = [f"{name}.learning_rate=auto" for name in rates]
    cfg = settings(*typed, *automatic)
    resolve_rates(cfg)
    assert {name: vars(cfg)[name].learning_rate for name in rates} == rates
    numbers = [f"{name}.learning_rate={rate}" for name, rate in rates.items()]
    for block in (cfg.sft, cfg.dpo):
        assert vars(block) == vars(vars(settings(*typed, *numbers))[block.block])


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
        ("smollm2_135m", 0.135),
        ("llama32_1b", 1.24),
        ("llama31_8b", 8.0),
        ("llama31_70b", 70.6),
        ("embedded", 0.135),
    ):
        parameters = count_parameters(settings(f"model={option}").model)
        assert (parameters or 0) / 1e9 == pytest.approx(billions, rel=0.03)
    assert count_parameters(settings("model.path=someone/on-the-hub").model) is None


def test_a_hub_model_that_is_on_this_machine_has_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--big"
    (repo / "snapshots" / "c0").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0")
    published = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "llama31_8b.yaml").config)
    (repo / "snapshots" / "c0" / "config.json").write_text(json.dumps(published))
    big, llama = settings("model.path=someone/big").model, settings("model=llama31_8b").model
    assert count_parameters(big) == count_parameters(llama)
