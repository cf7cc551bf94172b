"""Held-out pairs: their shares equal those of the margins that training measured, and a sentence explains them."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.config.blocks.evaluation import Eval
from stages.evaluation import learnt as scoring
from stages.evaluation.intervals import Means
from stages.evaluation.learnt import (
    FEWEST,
    cautions,
    learnt_results,
    log_probs,
    placements,
    read_held_out,
)
from stages.store.records import Pair, load, save
from tests.helpers import Chain, build, settings
from tests.rows import work

TITLES = {"base": "Base", "sft": "SFT", "policy": "DPO"}


def evaluation(**models: str) -> Eval:
    return replace(settings("recipe=tiny").eval, models=models or TITLES)


def inputs_of(chain: Chain, *overrides: str) -> dict[str, Path]:
    roles = {"pairs": "pairs", "sft": "sft", "policy": "dpo"}
    return {role: chain.folder(name, *overrides) for role, name in roles.items()}


def test_the_shares_are_those_of_the_margins_that_the_training_measured(
    chain: Chain, tmp_path: Path
) -> None:
    inputs, cfg, out = inputs_of(chain), evaluation(), work(tmp_path)
    margins = {
        row["id"]: row["margin"]
        for row in json.loads((inputs["policy"] / "held_out.json").read_text())
    }
    pairs = read_held_out(inputs, out)
    rows = [ids for _, ids in pairs]
    sums = {role: log_probs(cfg, role, inputs[role] / "model", rows) for role in ("sft", "policy")}
    ratios = sums["policy"] - sums["sft"]
    beta = chain.manifest("dpo")["config"]["beta"]
    scores = dict(zip([ids.id for ids in rows], beta * (ratios[:, 0] - ratios[:, 1]), strict=True))
    assert scores == pytest.approx(margins, abs=1e-4)
    figures, measured = learnt_results(cfg, inputs, "sft", out)
    assert figures["ratio"]["policy"]["mean"] == np.mean(
        [margin > 0 for margin in margins.values()]
    )
    assert np.mean([m.value for m in measured]) == figures["ratio"]["policy"]["mean"]
    assert (figures["pairs"], figures["note"]) == (len(margins), "too few to say")
    assert figures["sum"]["sft"]["mean"] == np.mean((1 + np.sign(-np.diff(sums["sft"])[:, 0])) / 2)
    assert figures["sum"].keys() == figures["per_token"].keys() == {"sft", "policy", "policy-sft"}
    shares = figures["sum"]
    assert shares["policy-sft"]["mean"] == pytest.approx(
        shares["policy"]["mean"] - shares["sft"]["mean"]
    )
    texts = [
        pair for pair in load(inputs["pairs"] / "pairs.parquet", Pair) if pair.split == "validation"
    ]
    longer = [
        np.sign(len(p.chosen_token_ids or []) - len(p.rejected_token_ids or [])) for p in texts
    ]
    assert figures["longer"]["mean"] == pytest.approx((1 + np.mean(longer)) / 2)
    assert not out.warnings


def test_the_same_weights_twice_have_learnt_nothing(chain: Chain, tmp_path: Path) -> None:
    inputs = inputs_of(chain)
    copied = shutil.copytree(inputs["sft"], tmp_path / "copied")
    figures, _ = learnt_results(evaluation(), inputs | {"policy": copied}, "sft", work(tmp_path))
    assert figures["ratio"]["policy"]["mean"] == 0.5
    assert figures["sum"]["policy-sft"]["mean"] == 0


def test_what_the_template_or_the_context_does_not_hold_is_left_out_and_counted(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, whole = inputs_of(chain), work(tmp_path / "whole")
    before = read_held_out(inputs, whole)
    lengths = [len(i.prompt_ids) + max(len(i.chosen_ids), len(i.rejected_ids)) for _, i in before]
    monkeypatch.setattr(scoring, "read_context_length", lambda model: max(lengths) - 1)
    table = tmp_path / "changed" / "pairs.parquet"
    table.parent.mkdir()
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    shortest = next(pair for pair in pairs if pair.id == before[lengths.index(min(lengths))][1].id)
    shortest.chosen, shortest.chosen_token_ids = (
        [{"role": "assistant", "content": "<|im_end|>"}],
        None,
    )
    save(table, pairs, Pair)
    out = work(tmp_path / "some")
    after = read_held_out(inputs | {"pairs": table.parent}, out)
    longest = lengths.count(max(lengths))
    assert len(after) == len(before) - longest - 1
    assert [
        f"{longest + 1} of {len(before)} held-out pairs" in warning for warning in out.warnings
    ] == [True]
    monkeypatch.setattr(scoring, "read_context_length", lambda model: 1)
    none = work(tmp_path / "none")
    assert learnt_results(evaluation(), inputs, "sft", none) == ({}, [])
    assert len(none.warnings) == 1


def test_models_that_share_no_template_are_not_scored(chain: Chain, tmp_path: Path) -> None:
    inputs = inputs_of(chain)
    for before in ("base", "other"):
        assert learnt_results(
            evaluation(**{before: "A", "policy": "SFT"}), inputs, before, work(tmp_path)
        ) == ({}, [])


def preferences(file: Path, chosen: Any) -> tuple[str, ...]:
    """Write prompts with two answers each to a file; `chosen` maps a prompt's number to the chosen index."""
    words = ("alpha beta", "gamma delta")
    rows = [
        {"prompt": f"Say {i}", "chosen": words[chosen(i)], "rejected": words[1 - chosen(i)]}
        for i in range(240)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return (
        "label=dataset",
        f"label.path={file}",
        "pairs=all",
        "pairs.validation_fraction=0.5",
        "dpo.batch_size=8",
    )


@pytest.mark.slow
def test_learnable_preferences_are_learnt_and_a_coins_are_not(chain: Chain, tmp_path: Path) -> None:
    def coin(i):
        return hashlib.sha256(str(i).encode()).digest()[0] % 2

    figures = {}
    for name, chosen in {"rule": lambda i: 0, "coin": coin}.items():
        line = preferences(tmp_path / f"{name}.jsonl", chosen)
        build(chain.root, "stage=dpo", *line)
        figures[name], _ = learnt_results(
            evaluation(), inputs_of(chain, *line), "sft", work(tmp_path / name)
        )
        assert figures[name]["pairs"] >= FEWEST and figures[name]["note"] == ""
    rule, coin = (figures[name]["ratio"]["policy"] for name in ("rule", "coin"))
    assert rule["low"] > 0.9
    assert coin["low"] < 0.5 < coin["high"]


def test_cautions_are_what_became_worse_by_more_than_is_usual() -> None:
    fine = {
        "models": TITLES,
        "before": "sft",
        "endings": "",
        "loops": {"sft": 0.01, "policy": 0.02},
        "kl": {"policy": {"per_token": 0.3}},
    }
    nothing_asked = fine | {"loops": {}, "kl": {}}
    assert cautions(fine) == cautions(nothing_asked) == ""
    worse = {
        "endings": ", and ends fewer of its answers by itself: 98.0% → 71.0%",
        "loops": {"sft": 0.01, "policy": 0.06},
        "kl": {"policy": {"per_token": 0.94}},
    }
    clause = cautions(fine | worse)
    assert clause.startswith("; but it ends ")
    assert all(
        part in clause for part in ("98.0% → 71.0%, and", "1.0% → 6.0%, and", "SFT: 0.94 nats")
    )


def test_single_completions_have_the_share_of_comparisons_with_an_interval_that_covers_it() -> None:
    """Mann and Whitney's share; for scores one standard deviation apart it is Φ(1/√2)."""
    true_share, draw, covered, tables = 0.5 * (1 + math.erf(0.5)), np.random.default_rng(0), 0, 400
    for _ in range(tables):
        desirable = np.arange(90) < 40
        scores = draw.normal(size=90) + desirable
        values = placements(scores, desirable)
        wins = [scores[i] > scores[j] for i in range(40) for j in range(40, 90)]
        assert values.mean() == pytest.approx(np.mean(wins))
        interval = Means(values[:, None], [str(i) for i in range(90)], drawn=True).share(0)
        covered += interval.low <= true_share <= interval.high
    assert 0.92 <= covered / tables <= 0.98, "95% within three standard errors of 400 tables"
