"""Tests of sweeps: shared nodes are built once, no job waits for another, and a failed job stops no other."""

import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from stages.cli import sweep
from stages.config.errors import UserError
from stages.config.schema import RECIPES
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, command, composed, inside, nodes

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


@dataclass
class Grid:
    """Four jobs from two settings: one that changes shared nodes, and one whose second value fails."""

    overrides: tuple[str, ...]
    counts: dict[str, int]
    last: str
    failures: tuple[str, ...]


TRAINED = Grid(
    (*GRID, "sft.epochs=1", "dpo.learning_rate=1e-3,1e9"),
    EXPECTED | {"dpo": 2},
    "dpo",
    tuple(
        rf"sft.learning_rate={rate} sft.epochs=1 dpo.learning_rate=1000000000.0 .*: training diverged at step"
        for rate in (0.005, 0.002)
    ),
)
PREFERENCES = [
    {"prompt": f"Question {i}?", "chosen": "Yes, it is.", "rejected": "No"} for i in range(4)
]
LABELLED = Grid(  # stages without torch, which every separate process would have to load
    (
        "stage=pairs",
        "label=dataset",
        "label.path=PREFERENCES",
        "label.max_failed=0.1,0.2",
        "pairs.max_length_ratio=9,1",
        "-m",
    ),
    {"label": 2, "pairs": 2},
    "pairs",
    tuple(
        rf"label.max_failed={share} pairs.max_length_ratio=1 .*: no pair could be made"
        for share in (0.1, 0.2)
    ),
)
RAY = (
    "hydra/launcher=ray",
    "+hydra.launcher.ray.init.num_cpus=2",
    "+hydra.launcher.ray.init.include_dashboard=false",
)
LAUNCHERS = {
    # nested, as the path of a file is in it
    "basic": ("hydra.sweep.subdir=${hydra.job.override_dirname}",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": RAY,
}


@pytest.mark.parametrize(
    ("launcher", "grid"),
    [
        pytest.param("basic", LABELLED, id="basic"),
        pytest.param("joblib", LABELLED, marks=pytest.mark.slow, id="joblib"),
        *(
            pytest.param(name, TRAINED, marks=pytest.mark.slow, id=f"{name}, trained")
            for name in LAUNCHERS
        ),
    ],
)
def test_shared_upstream_comes_first_and_a_failed_job_stops_no_other(
    launcher: str, grid: Grid, tmp_path: Path
) -> None:
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    started = inside if launcher == "basic" else command
    preferences = tmp_path / "preferences.jsonl"  # no two of the same length
    preferences.write_text("\n".join(map(json.dumps, PREFERENCES)))
    overrides = [override.replace("PREFERENCES", str(preferences)) for override in grid.overrides]
    ran = started(*TINY, *overrides, *LAUNCHERS[launcher], f"outputs={tmp_path}")
    assert ran.returncode == 1, ran.stderr
    lines = ran.stderr.splitlines()
    # output of Ray's workers may follow
    end = lines.index("error: 2 of 4 jobs failed. The others have finished.")
    for line, failure in zip(lines[end + 1 : end + 3], grid.failures, strict=True):
        assert re.search(failure, line)
    assert Chain(tmp_path).count() == grid.counts
    manifests = [manifest for _, manifest in Store(tmp_path).manifests()]
    assert {len(manifest["attempts"]) for manifest in manifests} == {1}, "no node was begun twice"
    shared = [m["ended"] for m in manifests if m["stage"] != grid.last]
    assert max(shared) < min(m["started"] for m in manifests if m["stage"] == grid.last), (
        "no job waited for another"
    )


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
    assert "that several jobs need" not in repeated.stdout
    assert [m["ended"] for _, m in Store(chain.root).manifests()] == ended
    assert max(ended) < started, "the second sweep built nothing"

    compared = inside(*words)
    assert compared.returncode == 0, compared.stderr
    for _, manifest in Store(chain.root).manifests("eval"):
        assert manifest["fingerprint"] in compared.stdout


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
    assert "that several jobs need: data" in ran.stdout
    assert len(list(tmp_path.glob("multirun/*/*/[01]/nodes.json"))) == 2
    assert Chain(tmp_path).count() == {"data": 1}


def test_waves_put_nodes_of_more_jobs_first_and_together_what_the_same_jobs_need(
    tmp_path: Path,
) -> None:
    grid = [
        (f"sft.learning_rate={sft}", f"sample.temperatures=[{temperature}]", f"dpo.beta={beta}")
        for sft in (1e-3, 1e-4)
        for temperature in (0.5, 1.0)
        for beta in (0.1, 0.5)
    ]
    jobs = [nodes(tmp_path, *overrides) for overrides in grid]
    drawn = ["sample", "label", "pairs", "reference"]
    assert sweep.plan_waves(jobs) == [
        [(0, ["base", "data", "answer_base"])],
        [(0, ["sft", "answer_sft"]), (4, ["sft", "answer_sft"])],
        [(job, drawn) for job in (0, 2, 4, 6)],
    ]
    assert sweep.plan_waves(jobs[:1]) == []


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
        sweep.validate_sweep(config)


@pytest.mark.parametrize(
    ("stage", "params", "task", "message"),
    [
        (
            "dpo",
            {"dpo.beta": "interval(0.1,0.5)"},
            [],
            "dpo.beta changes the definition of the dpo loss",
        ),
        (
            "dpo",
            {},
            ["dpo.loss_type=choice([hinge],[ipo])"],
            "dpo.loss_type changes the definition of the dpo loss",
        ),
        ("dpo", {}, ["dpo.beta=0.2", "dpo.learning_rate=interval(1e-5,1e-4)"], None),
        (
            "dpo",
            {},
            ["pairs.min_score=choice(0.5,1.0)"],
            "pairs.min_score changes its held-out rows",
        ),
        (
            "sft",
            {"sft.trainer.label_smoothing_factor": "0.0,0.1"},
            [],
            "sft.trainer.label_smoothing_factor changes",
        ),
    ],
)
def test_a_sweeper_may_not_choose_by_losses_that_do_not_compare(
    stage: str, params: dict[str, str], task: list[str], message: str | None
) -> None:
    config = composed(*TINY, f"stage={stage}", "sweep_metric=validation_loss")
    with open_dict(config):
        config.hydra = {
            "sweeper": {"direction": "minimize", "params": params},
            "overrides": {"task": task},
        }
    if message is None:
        sweep.validate_sweep(config)
        return
    with pytest.raises(UserError, match=message):
        sweep.validate_sweep(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("stage=dpo", "dpo.evaluations=0"), "has no validation loss here"),
        (
            ("stage=grpo", "align=grpo"),
            "measured by stage=sft or dpo or kto or reward, not by stage=grpo",
        ),
    ],
)
def test_a_sweeper_may_not_choose_by_a_loss_that_is_not_measured(
    line: tuple[str, ...], message: str
) -> None:
    config = composed(*TINY, "sweep_metric=validation_loss", *line)
    with pytest.raises(UserError, match=message):
        sweep.validate_sweep(config)


@pytest.mark.parametrize(("arguments", "direction", "message"), ASTRAY)
def test_optuna_may_not_either(
    arguments: tuple[str, ...], direction: str, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    optuna = ("hydra/sweeper=optuna", f"hydra.sweeper.direction={direction}", "dpo.beta=0.1,0.5")
    ran = inside(*TINY, *optuna, *arguments, f"outputs={tmp_path}", "-m")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert not Chain(tmp_path).count()


@pytest.mark.extended
def test_a_refused_job_stops_no_other_and_is_told_at_the_end(tmp_path: Path) -> None:
    ran = inside(*TINY, "stage=data", "dpo.beta=-1,0.2", f"outputs={tmp_path}", "-m")
    assert ran.returncode == 1
    end = ran.stderr.splitlines()[-2:]
    assert end[0].startswith("error: 1 of 2 jobs ")
    assert re.search(r"dpo.beta=-1 .*: dpo.beta=-1.0: the value must be .*\.$", end[1])
    assert Chain(tmp_path).count() == {"data": 1}


@pytest.mark.extended
def test_where_every_job_is_refused_none_starts(tmp_path: Path) -> None:
    ran = inside(*TINY, "stage=data", "dpo.beta=-2,-1", f"outputs={tmp_path}", "-m")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: dpo.beta=-2.0: ")
    assert not list(tmp_path.glob("multirun/*/*/[01]"))


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


@pytest.mark.extended
def test_gc_keeps_what_a_sweep_built_for_jobs_that_have_not_started(chain: Chain) -> None:
    """A killed sweep has jobs that recorded nothing, and on a cluster jobs wait in a queue."""
    line = ("stage=pairs", "label.max_failed=0.2")
    swept = inside(*TINY, f"outputs={chain.root}", *line, "pairs.seed=1,2", "-m")
    assert swept.returncode == 0, swept.stderr
    for job in chain.root.glob("multirun/*/*/[01]"):
        shutil.rmtree(job)
    build(chain.root, "stage=pairs")  # so that no link in latest/ reaches the nodes of the sweep
    listed = inside(*TINY, f"outputs={chain.root}", "stage=gc").stdout
    assert str(chain.folder("pairs", "pairs.seed=1", line[1])) in listed
    assert str(chain.folder("label", line[1])) not in listed
