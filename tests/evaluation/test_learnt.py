"""Held-out pairs: their shares equal those of the margins that training measured, and a sentence explains them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.evaluation import learnt as scoring
from stages.evaluation.intervals import Means
from stages.evaluation.learnt import (
    cautions,
    learnt_results,
    log_probs,
    placements,
    read_held_out,
    sentence,
)
from tests.helpers import Chain, settings
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
    inputs = inputs_of(chain)
    cfg = evaluation()
    out = work(tmp_path)
    held_out = json.loads((inputs["policy"] / "held_out.json").read_text())
    margins = {row["id"]: row["margin"] for row in held_out}
    rows = [ids for _, ids in read_held_out(inputs, out)]
    before = log_probs(cfg, "sft", inputs["sft"] / "model", rows)
    after = log_probs(cfg, "policy", inputs["policy"] / "model", rows)
    rewards = chain.manifest("dpo")["config"]["beta"] * (after - before)
    scores = {
        ids.id: chosen - rejected for ids, (chosen, rejected) in zip(rows, rewards, strict=True)
    }
    assert scores == pytest.approx(margins, abs=1e-4)
    figures, measured = learnt_results(cfg, inputs, "sft", out)
    right = np.mean([margin > 0 for margin in margins.values()])
    assert figures["ratio"]["policy"]["mean"] == np.mean([m.value for m in measured]) == right
    assert (figures["pairs"], figures["note"]) == (len(margins), "too few to say")
    assert figures["of"].endswith("held-out pairs")
    shares = figures["sum"]
    assert shares.keys() == figures["per_token"].keys() == {"sft", "policy", "policy-sft"}
    difference = shares["policy"]["mean"] - shares["sft"]["mean"]
    assert shares["policy-sft"]["mean"] == pytest.approx(difference)
    assert not out.warnings


def test_what_the_context_does_not_hold_is_left_out_and_counted(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(chain)
    before = read_held_out(inputs, work(tmp_path / "whole"))
    lengths = list[int]()
    for _, ids in before:
        lengths.append(len(ids.prompt_ids) + max(len(ids.chosen_ids), len(ids.rejected_ids)))
    monkeypatch.setattr(scoring, "read_context_length", lambda model: max(lengths) - 1)
    out = work(tmp_path / "some")
    longest = lengths.count(max(lengths))
    assert len(read_held_out(inputs, out)) == len(before) - longest
    [warning] = out.warnings
    assert f"{longest} of {len(before)} held-out pairs" in warning
    monkeypatch.setattr(scoring, "read_context_length", lambda model: 1)
    assert learnt_results(evaluation(), inputs, "sft", work(tmp_path / "none")) == ({}, [])


def test_cautions_are_what_became_worse_by_more_than_is_usual() -> None:
    fine = {"models": TITLES, "before": "sft", "endings": "", "loops": {}, "kl": {}}
    fine |= {"loops": {"sft": 0.01, "policy": 0.02}, "kl": {"policy": {"per_token": 0.3}}}
    assert cautions(fine) == ""
    worse = fine | {"loops": {"sft": 0.01, "policy": 0.06}, "kl": {"policy": {"per_token": 0.94}}}
    assert "1.0% → 6.0%" in cautions(worse)
    assert "0.94 nats" in cautions(worse)


def test_single_completions_have_the_share_of_comparisons_with_an_interval_that_covers_it() -> None:
    """Mann and Whitney's share; for scores one standard deviation apart it is Φ(1/√2)."""
    true_share = 0.5 * (1 + math.erf(0.5))
    draw = np.random.default_rng(0)
    covered = 0
    tables = 200
    desirable = np.arange(90) < 40
    names = [str(i) for i in range(90)]
    for _ in range(tables):
        scores = draw.normal(size=90) + desirable
        values = placements(scores, desirable)
        wins = scores[:40, None] > scores[None, 40:]
        assert values.mean() == pytest.approx(wins.mean())
        interval = Means(values[:, None], names, drawn=True).share(0)
        covered += interval.low <= true_share <= interval.high
    assert 0.9 <= covered / tables <= 0.99


def test_groups_of_held_out_pairs_are_told_only_where_they_are_asked_for(
    chain: Chain, tmp_path: Path
) -> None:
    inputs = inputs_of(chain)
    cfg = evaluation()
    figures, _ = learnt_results(cfg, inputs, "sft", work(tmp_path / "default"))
    assert "by" not in figures
    by_group, _ = learnt_results(replace(cfg, by=[]), inputs, "sft", work(tmp_path / "all"))
    grouped = by_group.pop("by")
    assert by_group == figures
    assert grouped["moved"] > 1e-6
    assert all(group["pairs"] >= 5 for group in grouped["groups"])
    with pytest.raises(UserError, match=r"eval\.by=\[language\].*eval\.by="):
        learnt_results(replace(cfg, by=["language"]), inputs, "sft", work(tmp_path / "other"))


def test_a_training_that_moved_nothing_did_not_learn() -> None:
    share = {"mean": 0.95, "low": 0.9, "high": 0.99}
    figures = {"ratio": {"policy": share}, "note": "", "of": "60 held-out pairs"}
    assert "moved nothing" not in sentence(figures, TITLES)
    tiny = figures | {"by": {"moved": 5e-6, "groups": []}}
    assert "DPO moved nothing: 5e-06 nats" in sentence(tiny, TITLES)
