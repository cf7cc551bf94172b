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
from stages.evaluation.estimate import Means
from stages.evaluation.learnt import (
    cautions,
    learnt_results,
    log_probs,
    placements,
    read_held_out,
)
from stages.evaluation.results import Behaviour, Divergence
from stages.store.records import Pair, content_id, load, save
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
    assert {m.value for m in measured if m.role == "sft"} == {0.5}, (
        "it favours no answer over itself"
    )
    measured = [m for m in measured if m.role == "policy"]
    right = np.mean([margin > 0 for margin in margins.values()])
    assert figures.ratio["policy"].mean == np.mean([m.value for m in measured]) == right
    assert (figures.pairs, figures.note) == (len(margins), "too few to say")
    assert figures.of.endswith("held-out pairs")
    shares = figures.sum
    assert shares.keys() == figures.per_token.keys() == {"sft", "policy", "policy-sft"}
    difference = shares["policy"].mean - shares["sft"].mean
    assert shares["policy-sft"].mean == pytest.approx(difference)
    assert not out.warnings
    tokens = np.array([[len(ids.chosen_ids), len(ids.rejected_ids)] for ids in rows])
    nats_per_token = (np.abs(after - before) / tokens).mean()
    assert figures.moved == {"policy": pytest.approx(nats_per_token)}
    assert nats_per_token > 0
    blind = figures.blind
    assert blind.unexplained == blind.wrong + blind.silent >= blind.gained["policy"]
    assert 0 < blind.training_pairs == chain.manifest("pairs")["metrics"]["pairs"] - len(rows)
    assert (figures.repeats, figures.others) == (0, None)


@pytest.mark.extended
def test_pairs_that_repeat_a_training_pair_are_counted_and_the_others_have_their_own_figures(
    chain: Chain, tmp_path: Path
) -> None:
    inputs = inputs_of(chain)
    stored = load(inputs["pairs"] / "pairs.parquet", Pair)
    held_out = [pair for pair in stored if pair.split == "validation"]
    repeating = {pair.id for pair in held_out[::2]}
    marked = [replace(pair, repeats=pair.id in repeating) for pair in stored]
    save(tmp_path / "pairs.parquet", marked, Pair)
    cfg = evaluation()
    whole, measured = learnt_results(cfg, inputs, "sft", work(tmp_path / "whole"))
    inputs["pairs"] = tmp_path
    figures, _ = learnt_results(cfg, inputs, "sft", work(tmp_path / "some"))
    others = figures.others
    assert figures.repeats == len(repeating) > 0
    assert others.pairs == len(held_out) - len(repeating) > 0
    units = {content_id(p.prompt_id, p.chosen, p.rejected) for p in held_out if p.id in repeating}
    gained = [
        measure.value
        for measure in measured
        if measure.unit not in units and measure.role == "policy"
    ]
    assert others.ratio["policy"].mean == pytest.approx(np.mean(gained))
    both = replace(figures, repeats=0, others=None)
    assert both == whole, "the figures of all pairs stay"
    inputs["pairs"] = tmp_path / "all"
    inputs["pairs"].mkdir()
    save(tmp_path / "all" / "pairs.parquet", [replace(p, repeats=True) for p in stored], Pair)
    figures, _ = learnt_results(cfg, inputs, "sft", work(tmp_path / "none"))
    assert (figures.repeats, figures.others) == (len(held_out), None)


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
    assert learnt_results(evaluation(), inputs, "sft", work(tmp_path / "none")) == (None, [])


def test_cautions_are_what_became_worse_by_more_than_is_usual() -> None:
    assert cautions_of(loops=0.02, nats_per_token=0.3) == ""
    worse = cautions_of(loops=0.06, nats_per_token=0.94)
    assert "1.0% → 6.0%" in worse
    assert "0.94 nats" in worse


def cautions_of(loops: float, nats_per_token: float) -> str:
    """Return the clause on a policy with this share of loops, at this distance from SFT."""
    shown = Behaviour({}, {}, {"sft": 0.01, "policy": loops})
    kl = {"policy": Divergence(nats_per_token, 10 * nats_per_token, 8)}
    return cautions(TITLES, "sft", shown, "", kl)


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
    assert figures
    assert figures.by is None
    by_group, _ = learnt_results(replace(cfg, by=[]), inputs, "sft", work(tmp_path / "all"))
    assert by_group
    assert by_group.by
    assert replace(by_group, by=None) == figures
    assert all(group.pairs >= 5 for group in by_group.by.groups)
    with pytest.raises(UserError, match=r"eval\.by=\[language\].*eval\.by="):
        learnt_results(replace(cfg, by=["language"]), inputs, "sft", work(tmp_path / "other"))
