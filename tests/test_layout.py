"""Tests of the layout: the stages, the imports between packages, and the libraries that an import loads."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from stages.config.extras import EXTRAS
from stages.config.installation import ROOT
from stages.config.stage_table import STAGES

HOUSE = ROOT / "stages"
# The packages that a package may import, and with them their own imports. Imports run one way. Only the worker and
# `build` import stages, by the stage's name in the node.
MAY_IMPORT = {
    "config": (),
    "store": ("config",),
    "hardware": ("store",),
    "models": ("hardware",),
    "tasks": ("store",),
    "formats": ("store",),
    "curation": ("formats", "tasks"),
    "pairing": ("store",),
    "evaluation": ("models", "curation"),
    "pages": ("evaluation", "labelers"),  # for the words of judges
    "endpoints": ("store",),
    "samplers": ("models", "endpoints", "formats"),  # for candidates from files
    # people see their agreement
    "labelers": ("formats", "tasks", "models", "samplers", "evaluation"),
    # sample answers, the test for a rising loss, and the scores of draws
    "training": ("samplers", "evaluation", "labelers"),
    "objectives": ("training",),
    "tracking": ("store",),
    "launch": ("hardware",),
    "pipeline": ("launch", "tracking", "hardware"),
    # it reads the first rows of files, and asks peft about layers
    "preflight": ("pipeline", "formats", "labelers", "training"),
    "commands": ("preflight", "pages"),
    "cli": ("commands",),
    "extras": ("cli",),  # anything, and nothing imports them
}
ROOMS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py"))
PARTS = {
    room
    for room in MAY_IMPORT
    if room not in ("pipeline", "preflight", "cli", "commands", "launch", "tracking", "extras")
}


def allowed(room: str) -> set[str]:
    return {room}.union(*(allowed(other) for other in MAY_IMPORT[room]))


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules of ours that a file imports anywhere, also inside functions: `stages.models.loading`."""
    return frozenset(name for name in imported_names(path) if is_ours(name))


def imported_names(path: Path) -> set[str]:
    """Modules, packages and names in them."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {name for name in (node.module, *names) if name.startswith("stages.")}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.startswith("stages.")}
    return modules


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def is_ours(module: str) -> bool:
    return Path(ROOT, *module.split(".")).with_suffix(".py").exists()


def test_a_file_directly_in_stages_is_a_stage() -> None:
    of_core = {name for name, stage in STAGES.items() if not stage.extra}
    assert {path.stem for path in HOUSE.glob("*.py")} == {*of_core, "__init__"}


def test_a_stage_of_an_extra_has_its_file_in_the_folder() -> None:
    of_extras = [stage for stage in STAGES.values() if stage.extra]
    assert not [stage.name for stage in of_extras if not (HOUSE / stage.file).exists()]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    astray = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (HOUSE / room).rglob("*.py")
        for module in imported(path)
        if module.split(".")[1] not in allowed(room)
    }
    assert not astray


def test_no_file_imports_an_extra_that_is_not_its_own() -> None:
    astray = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in [ROOT / "run.py", *HOUSE.rglob("*.py")]
        for name in imported_names(path)
        if name.startswith("stages.extras.")
        and not path.is_relative_to(HOUSE / "extras" / name.split(".")[2])
    }
    assert not astray


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_imports_parts_and_no_other_stage(stage: str) -> None:
    record = STAGES[stage]
    modules = imported(HOUSE / record.file)
    assert modules.isdisjoint(each.module for each in STAGES.values())
    rooms = {module.split(".")[1] for module in modules}
    own_parts = {"extras"} if record.extra else set()
    assert rooms <= PARTS | own_parts


@pytest.mark.extended
def test_hydra_is_known_to_the_command_line_alone() -> None:
    knowing = set()
    for path in [ROOT / "run.py", *HOUSE.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            knowing |= {
                path.relative_to(ROOT).parts[:-1] for name in names if name.split(".")[0] == "hydra"
            }
    assert knowing == {("stages", "cli")}


def test_no_two_files_import_each_other() -> None:
    """Check imports for types too."""
    reached = {module_of(path): {*imported(path)} for path in HOUSE.rglob("*.py")}
    # Warshall's algorithm: what `via` reaches is reached through it
    for via, beyond in reached.items():
        for modules in reached.values():
            modules |= beyond if via in modules else set()
    cycles = {
        frozenset({module, *(other for other in modules if module in reached[other])})
        for module, modules in reached.items()
        if module in modules
    }
    assert not cycles


# Modules that must not import torch, which takes seconds and may be missing where people only read results.
WITHOUT_TORCH = (
    "report",
    "sample",
    "label",
    "pairs",
    "data",
    "pipeline.build",
    "commands.plan",
    *(f"extras.{name}" for name in EXTRAS),
    *(f"extras.{name}.command" for name in EXTRAS if name in ("compare", "doctor", "gc")),
)


def test_what_trains_and_scores_nothing_loads_no_torch() -> None:
    tried = [f"stages.{name}" for name in WITHOUT_TORCH]
    code = f"import sys, importlib\nfor m in {tried}: importlib.import_module(m); assert 'torch' not in sys.modules, m"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
