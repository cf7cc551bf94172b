"""Tests that a folder of `stages/extras/` may be removed, and that nothing else has to go with it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.config.extras import EXTRAS, join_entries
from stages.config.installation import ROOT
from tests.helpers import TINY, Chain

PACKAGES = ("stages", "conf", "recipes")
BESIDE = ("tests", "docs", ".github", ".ci", "run.py", "pyproject.toml", "constraints.txt")
BESIDE += ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "mkdocs.yml")
REMOVED = {name: [name] for name in EXTRAS} | {"all": [*EXTRAS]}
# One process helps, composes and plans
TYPED = """
import json, sys
from stages.cli import main
for line in map(json.loads, sys.argv[1:]):
    sys.argv[1:] = line
    main.main()
"""


def copied(folder: Path, names: tuple[str, ...], removed: list[str]) -> Path:
    """Return a folder with a copy of these parts of the checkout, without these extras and their tests."""
    for name in names:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, folder / name)  # with what Python compiled
        else:
            shutil.copy(place, folder)
    for extra in removed:
        for place in ("stages", "tests"):
            shutil.rmtree(folder / place / "extras" / extra, ignore_errors=True)
    return folder


def typed(house: Path, *lines: list[str]) -> subprocess.CompletedProcess[str]:
    """Run command lines in one process."""
    return subprocess.run(
        [sys.executable, "-c", TYPED, *map(json.dumps, lines)],
        cwd=house,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.extended
@pytest.mark.parametrize("removed", REMOVED.values(), ids=REMOVED)
def test_without_an_extra_everything_else_composes_plans_and_helps(
    removed: list[str], tmp_path: Path
) -> None:
    house = copied(tmp_path / "house", PACKAGES, removed)
    planned = [*TINY, "stage=plan", f"outputs={tmp_path / 'outputs'}"]
    ran = typed(house, ["--help"], planned)
    assert ran.returncode == 0, ran.stderr
    usage, _, plan = ran.stdout.partition("--version")
    assert not [name for name in removed if re.search(rf"^(.* )?{name}  ", usage, re.MULTILINE)]
    assert ("nodes. First guess" in plan) == ("forecast" not in removed)
    assert re.search(r"To build: \d+ nodes\.", plan)


@pytest.mark.extended
def test_without_any_extra_models_are_evaluated_to_the_byte_and_reported(
    chain: Chain, tmp_path: Path
) -> None:
    house = copied(tmp_path / "house", PACKAGES, [*EXTRAS])
    evaluation = chain.folder("eval")
    results = (evaluation / "results.json").read_bytes()
    page = chain.folder("report") / "report.html"
    for folder in (evaluation, page.parent):
        shutil.rmtree(folder)
    ran = typed(house, [*TINY, f"outputs={chain.root}"])
    assert ran.returncode == 0, ran.stderr
    assert (evaluation / "results.json").read_bytes() == results, "under the same fingerprint"
    assert page.exists()
    assert ran.stdout.count(": built ") == 2, "the rest is reused"


@pytest.mark.extended
@pytest.mark.parametrize(
    ("extra", "stage", "setting"),
    [
        ("gc", "gc", "gc.remove=true"),
        ("benchmarks", "benchmark", "benchmark.limit=5"),
        ("shared_store", "store", "store.remote=/shared"),
    ],
)
def test_the_command_or_stage_and_the_settings_of_a_removed_extra_are_unknown(
    extra: str, stage: str, setting: str, tmp_path: Path
) -> None:
    house = copied(tmp_path / "house", PACKAGES, [extra])
    told = typed(house, [f"stage={stage}"]).stderr
    assert f"stage={stage}: {stage} is not a known value" in told
    assert f"error: {stage} is not a setting" in typed(house, [setting]).stderr


@pytest.mark.extended
def test_the_machine_of_a_plan_goes_with_its_forecasts(tmp_path: Path) -> None:
    house = copied(tmp_path / "house", PACKAGES, ["forecast"])
    assert "error: plan is not a setting" in typed(house, ["stage=plan", "plan.gpu=h200"]).stderr


# By extra, options and keys that only it has
OF_EXTRAS = {
    "examine": ("recipe=examine", "model=before"),
    "human": ("label=human", "eval/judged=human", "label.people=3"),
    "mlflow": ("tracker=mlflow", "tracker.mlflow=true"),
    "ray": ("launch=ray", "launch.address=auto"),
    "suites": ("eval/suites=all", "eval.suites.names=[refusal]"),
    "tensorboard": ("tracker=tensorboard", "tracker.tensorboard=true"),
    "trackio": ("tracker=trackio", "tracker.trackio=true"),
}
ENSEMBLE = (
    "label=ensemble",
    "label.members=[{labeler: verifier}, {labeler: judge}]",
    "label.judge.endpoints=[{base_url: 'http://127.0.0.1:9/v1', model: m}]",
)


@pytest.mark.extended
@pytest.mark.parametrize("extra", [name for name in OF_EXTRAS if name in EXTRAS])
def test_the_options_of_a_removed_extra_are_refused_and_not_offered(
    extra: str, tmp_path: Path
) -> None:
    house = copied(tmp_path / "house", PACKAGES, [extra])
    for argument in OF_EXTRAS[extra]:
        told = typed(house, [*TINY, argument]).stderr
        assert re.match(rf"error: {argument.partition('=')[0]}\b", told)
        assert "does not exist" in told or "is not a setting" in told
        assert extra not in told.partition("Known")[2].partition("type")[0]


@pytest.mark.extended
@pytest.mark.extra("examine")
def test_a_stage_and_a_word_of_align_of_a_removed_extra_are_refused(tmp_path: Path) -> None:
    house = copied(tmp_path / "house", PACKAGES, ["examine"])
    for argument in ("stage=examine", "stage=diff", "rebuild=diff"):
        told = typed(house, [*TINY, argument]).stderr
        key, _, word = argument.partition("=")
        assert told.startswith(f"error: {key}") and word in told
    assert "examine is not a setting" in typed(house, [*TINY, "examine.rows=5"]).stderr
    told = typed(house, [*TINY, "align=given", "stage=plan"]).stderr
    assert told.startswith("error: align=given") and "align=dpo" in told


@pytest.mark.extended
@pytest.mark.extra("human")
def test_an_ensemble_without_the_extra_asks_no_people_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    house = copied(tmp_path / "house", PACKAGES, ["human"])
    for key in ("label.people=3", "label.human.seed=3"):
        told = typed(house, [*TINY, *ENSEMBLE, key]).stderr
        assert "stages/extras/human" in told and told.startswith("error: label.")


@pytest.mark.extended
@pytest.mark.extra("shared_store", "gc", "sync")
def test_without_the_shared_store_gc_and_sync_serve_this_store_alone(
    built: Path, tmp_path: Path
) -> None:
    house = copied(tmp_path / "house", PACKAGES, ["shared_store"])
    ran = typed(house, ["stage=gc", f"outputs={built}"], ["stage=sync", f"outputs={built}"])
    assert re.search(r"\d+ nodes kept; 0 folders", ran.stdout)
    assert ran.stderr.startswith("error: stage=sync needs a W&B key")


# They compare pages and a record of the whole project with it, or read the commit
OF_THE_WHOLE = (
    "docs/test_configuration.py::test_the_page_is_true",
    "docs/test_pages.py::test_every_command_composes",
    "docs/test_pages.py::test_every_promise_names_tests_that_are_there",
    "docs/test_pages.py::test_links_lead_somewhere[docs/reference/configuration.md]",
    "pipeline/test_versions.py::test_every_changed_stage_was_raised_or_waved_through",
    "pipeline/test_chain.py::test_the_manifest_says_where_a_node_came_from",
    "goldens/test_goldens.py::test_every_recorded_refusal_is_of_a_test_that_is_there",
)


def test_two_extras_do_not_have_one_name() -> None:
    entries = {"audit": {"rows": 1, "pages": 2}, "diary": {"days": 3}}
    assert join_entries(entries, "block") == {"rows": 1, "pages": 2, "days": 3}
    entries["diary"]["pages"] = 4
    with pytest.raises(
        UserError, match=r"stages/extras/audit and stages/extras/diary .* block pages"
    ):
        join_entries(entries, "block")


@pytest.mark.extended
@pytest.mark.parametrize("part", ["stage", "block"])
def test_a_folder_with_the_stage_or_block_of_another_is_named(part: str, tmp_path: Path) -> None:
    house = copied(tmp_path / "house", PACKAGES, [])
    extras = house / "stages" / "extras"
    shutil.copytree(extras / "benchmarks", extras / "copied")
    if part == "block":
        (extras / "copied" / "stages.py").unlink()
    ran = typed(house, ["--help"])
    assert ran.returncode == 1
    folders = "stages/extras/benchmarks and stages/extras/copied"
    assert f"{folders} both have the {part} benchmark" in ran.stderr


@pytest.mark.slow
def test_without_any_extra_the_tests_of_the_core_pass(tmp_path: Path) -> None:
    house = copied(tmp_path / "house", (*PACKAGES, *BESIDE), [*EXTRAS])
    shutil.rmtree(house / "tests" / "extras")
    line = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not extended", "tests"]
    ran = subprocess.run(
        [*line, *(f"--deselect=tests/{test}" for test in OF_THE_WHOLE)],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
