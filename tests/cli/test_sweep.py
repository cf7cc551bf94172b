"""Tests of sweeps: shared nodes are built once, and a failed job stops no other."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from stages.cli import sweep
from stages.config.errors import UserError
from stages.config.schema import RECIPES
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, command, composed, inside, slow_but

GRID = ("stage=dpo", "sft.learning_rate=5e-3,2e-3", "-m")
EXPECTED = {
    "base": 1,
    "data": 1,
    "sft": 2,
    "sample": 2,
    "label": 2,
    "pairs": 2,
    "reference": 2,
    "dpo": 4,
}
PREFERENCES = [
    {"prompt": f"Question {i}?", "chosen": "Yes, it is.", "rejected": "No"} for i in range(4)
]


@pytest.mark.parametrize("launcher", slow_but(("basic", "joblib"), "basic"))
def test_jobs_build_shared_nodes_once_and_a_failed_job_stops_no_other(
    launcher: str, tmp_path: Path
) -> None:
    run = inside
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
        run = command
    file = tmp_path / "preferences.jsonl"  # no two answers of the same length
    file.write_text("\n".join(map(json.dumps, PREFERENCES)))
    line = (*TINY, "stage=pairs", "label=dataset", f"label.path={file}", f"outputs={tmp_path}")
    ran = run(*line, "pairs.max_length_ratio=1,9", f"hydra/launcher={launcher}", "-m")
    assert ran.returncode == 1, ran.stderr
    head, failure = ran.stderr.splitlines()[-2:]
    assert head == "error: 1 of 2 jobs failed. The others have finished."
    assert re.search(r"pairs.max_length_ratio=1.*: no pair could be made", failure)
    assert Chain(tmp_path).count() == {"label": 1, "pairs": 1}
    manifests = [manifest for _, manifest in Store(tmp_path).manifests()]
    assert {len(manifest["attempts"]) for manifest in manifests} == {1}, "no node was begun twice"


@pytest.mark.extra("compare")
@pytest.mark.slow
def test_a_sweep_that_is_there_builds_nothing_and_says_how_to_compare(chain: Chain) -> None:
    """The store already has the nodes of one of the four jobs."""
    grid = (*TINY, *GRID, "stage=eval", "dpo.beta=0.1,0.5", f"outputs={chain.root}")
    ran = inside(*grid)
    assert ran.returncode == 0, ran.stderr
    assert chain.count() == EXPECTED | {"answer": 1 + 2 + 4, "eval": 4, "report": 1}
    ended = [manifest["ended"] for _, manifest in Store(chain.root).manifests()]
    words = re.findall(r"Compare: python run.py (.*)", ran.stdout)[0].split()
    page = Path(re.findall(r"The jobs: (.*)", ran.stdout)[0]).read_text()
    assert [f">job {job}</a>" in page for job in range(4)] == [True] * 4

    started = time.time()
    repeated = inside(*grid)
    assert repeated.returncode == 0, repeated.stderr
    assert [m["ended"] for _, m in Store(chain.root).manifests()] == ended
    assert max(ended) < started, "the second sweep built nothing"

    compared = inside(*words)
    assert compared.returncode == 0, compared.stderr
    assert "Of 4 settings" in compared.stdout


@pytest.mark.extended
def test_a_sweep_may_stand_in_a_recipe(tmp_path: Path) -> None:
    recipe = RECIPES / "swept.yaml"
    recipe.write_text(
        (RECIPES / "tiny.yaml").read_text()
        + "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n"
    )
    try:
        ran = inside("recipe=swept", "tracker=none", "stage=data", f"outputs={tmp_path}")
    finally:
        recipe.unlink()
    assert ran.returncode == 0, ran.stderr
    assert len(list(tmp_path.glob("multirun/*/*/[01]/nodes.json"))) == 2
    assert Chain(tmp_path).count() == {"data": 1}


@pytest.mark.slow
def test_optuna_finds_the_best_pass_rate_on_validation_prompts(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    study = f"hydra.sweeper.storage=sqlite:///{tmp_path}/optuna.db"
    optuna = (
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.direction=maximize",
        study,
    )
    ran = command(
        *TINY,
        *GRID,
        "stage=eval",
        "answer.split=validation",
        "dpo.beta=0.1,0.5",
        *optuna,
        f"outputs={tmp_path}",
    )
    assert ran.returncode == 0, ran.stderr
    assert Chain(tmp_path).count() == EXPECTED | {"answer": 1 + 2 + 4, "eval": 4}
    manifests = [m for _, m in Store(tmp_path).manifests("eval")]
    [best] = tmp_path.glob("multirun/*/*/optimization_results.yaml")
    assert OmegaConf.load(best).best_value == max(
        m["metrics"]["pass_rate"]["policy"] for m in manifests
    )


ASTRAY = [
    (
        ("stage=eval",),
        "maximize",
        "answer.split=test must not be optimised. Add answer.split=validation",
    ),
    (
        ("stage=dpo",),
        "maximize",
        "sweep_metric=pass_rate is measured by stage=eval or report, not by stage=dpo",
    ),
    (
        ("answer.split=validation",),
        "minimize",
        "sweep_metric=pass_rate needs hydra.sweeper.direction=maximize",
    ),
    (
        ("stage=sft", "sweep_metric=validation_loss"),
        "maximize",
        "sweep_metric=validation_loss needs hydra.sweeper.direction=minimize",
    ),
]


@pytest.mark.parametrize(("arguments", "direction", "message"), ASTRAY)
def test_a_sweeper_that_optimises_may_not_read_test_nor_go_the_wrong_way(
    arguments: tuple[str, ...], direction: str, message: str
) -> None:
    config = composed(*TINY, *arguments)
    with open_dict(config):
        config.hydra = {
            "sweeper": {"direction": direction, "params": {}},
            "overrides": {"task": []},
        }
    with pytest.raises(UserError, match=message):
        sweep.validate_optimiser(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("stage=dpo", "dpo.evaluations=0"), "has no validation loss here"),
        (("stage=grpo", "align=grpo"), "measured by stage=sft or dpo .*, not by stage=grpo"),
    ],
)
def test_a_sweeper_may_not_choose_by_a_loss_that_is_not_measured(
    line: tuple[str, ...], message: str
) -> None:
    config = composed(*TINY, "sweep_metric=validation_loss", *line)
    with pytest.raises(UserError, match=message):
        sweep.validate_optimiser(config)


@pytest.mark.extended
def test_a_refused_job_stops_no_other_and_is_told_at_the_end(tmp_path: Path) -> None:
    ran = inside(*TINY, "stage=data", "dpo.beta=-1,0.2", f"outputs={tmp_path}", "-m")
    assert ran.returncode == 1
    end = ran.stderr.splitlines()[-2:]
    assert end[0].startswith("error: 1 of 2 jobs ")
    assert re.search(r"dpo.beta=-1 .*: dpo.beta=-1.0: the value must be .*\.$", end[1])
    assert Chain(tmp_path).count() == {"data": 1}


@pytest.mark.extra("gc")
@pytest.mark.slow
def test_gc_keeps_what_a_sweep_that_stands_reaches(chain: Chain) -> None:
    swept = inside(*TINY, f"outputs={chain.root}", "stage=dpo", "dpo.beta=0.2,0.3", "-m")
    assert swept.returncode == 0, swept.stderr
    typed = re.findall(r"To evaluate them: python run.py (.*) -m", swept.stdout)[0]
    assert {"stage=eval", "dpo.beta=0.2,0.3", "answer.split=validation"} < set(typed.split())
    build(chain.root)
    models = [chain.folder("dpo", f"dpo.beta={beta}") for beta in (0.2, 0.3)]
    listed = inside(*TINY, f"outputs={chain.root}", "stage=gc").stdout
    assert not [model for model in models if str(model) in listed]
    shutil.rmtree(chain.root / "multirun")
    listed = inside(*TINY, f"outputs={chain.root}", "stage=gc").stdout
    assert [model for model in models if str(model) in listed] == models
