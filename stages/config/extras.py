"""The extras: folders of `stages/extras/` that may be removed, and what their files say that each of them is.

`command.py` has the `run` of a command. `tracker.py`, `cluster.py` and `labeler.py` have the class of a tracker, a
cluster and a labeler, whose word is the folder's name; `mirror.py` has that of a copy of the store; `preflight.py` has
checks of nodes before they are built. `forecast.py` has the class that says what nodes will cost.
`conf/GROUP/OPTION.yaml` is an option of a group, and `recipes/NAME.yaml` a recipe, as the files of `conf/` and
`recipes/` are.

`stages.py` has `STAGES`, the records of stages. `STAGE.py` has the `run` of each, and `graph.py` adds its nodes to the
graph: `add_nodes(chain)`. `chain.py` has the classes of the graph for a policy that was trained elsewhere. `alone.py` wires
a run that has the extra's nodes alone. `constraints.py` refuses settings that do not fit together. `run_result.py` adds keys
to the result of a run, and says if it is a failure: `read_result(built)`, `is_failure(cfg, built)`. `page.py` reads what
sections of the report show, and writes the report of a run with the extra's nodes alone (`write_page`);
`section_NAME.html.jinja` is the template of a section, and `glossary.yaml` adds texts to `stages/pages/glossary.yaml`.

`results.py` measures a section of an evaluation's results: `measure_section(cfg, inputs, out)`. `evaluated.py` has the
class of the nodes that ask the models for it, `prompts.py` writes prompts for them: `generate(block)`, and `compared.py`
has a table of rates for `stage=compare`: `TITLE`, `rates(results, role)`.

The record is `__init__.py`. It may have `COMMAND`, the record of a command; `OPTIONS`, by group the class of the option
with the folder's name; `BLOCKS`, by name the class of a block, which adds keys to a block of the core, or is a block of
its own; and `EXIT_CODES`, by exit code what it can mean, too. The record of an extra with stages is imported before the
table of stages is there."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from stages.config.errors import UserError
from stages.config.installation import PACKAGE
from stages.config.stage_record import Stage

T = TypeVar("T")
FOLDER = PACKAGE / "extras"
EXTRAS = tuple(sorted(file.parent.name for file in FOLDER.glob("*/__init__.py")))


def extras_with(file: str) -> list[str]:
    """Return the names of the extras that have a file of this name."""
    return [name for name in EXTRAS if (FOLDER / name / file).exists()]


def files_of_extras(pattern: str) -> list[Path]:
    """Return the files of extras whose path in their folder matches a pattern."""
    return [file for name in EXTRAS for file in sorted((FOLDER / name).glob(pattern))]


def modules_of_extras(name: str) -> list[ModuleType]:
    """Return the modules of this name of the extras that have one."""
    extras = extras_with(f"{name}.py")
    return [importlib.import_module(f"stages.extras.{extra}.{name}") for extra in extras]


def folder_of(module: ModuleType) -> str:
    """Return the name of the extra with a module."""
    return module.__name__.split(".")[-2]


def import_beside(block: object, name: str) -> ModuleType:
    """Return the module of this name in the folder of an extra, whose record has the class of a block."""
    return importlib.import_module(f"{type(block).__module__}.{name}")


def require_different_names(names_by_extra: Mapping[str, Iterable[str]], noun: str) -> None:
    """Raise UserError if two extras have something of the same name, of which one would be lost. `noun`: what it is."""
    extra_by_name = dict[str, str]()
    for extra, names in names_by_extra.items():
        for name in names:
            if name in extra_by_name:
                folders = f"stages/extras/{extra_by_name[name]} and stages/extras/{extra}"
                raise UserError(f"{folders} both have the {noun} {name}. Rename it in one of them.")
            extra_by_name[name] = extra


def join_entries(entries_by_extra: Mapping[str, Mapping[str, T]], noun: str) -> dict[str, T]:
    """Return the entries of all extras by name. Raise UserError if two extras have one of the same name."""
    require_different_names(entries_by_extra, noun)
    joined = dict[str, T]()
    for entries in entries_by_extra.values():
        joined |= entries
    return joined


def stages_of_extras() -> dict[str, Stage]:
    """Return the records of the stages that extras bring, by the stage's name."""
    stages_by_extra = dict[str, dict[str, Stage]]()
    for module in modules_of_extras("stages"):
        extra = folder_of(module)
        stages_by_extra[extra] = {
            stage.name: replace(stage, extra=extra) for stage in module.STAGES
        }
    return join_entries(stages_by_extra, "stage")


def conf_folders() -> list[Path]:
    """Return the folders of extras with options of groups."""
    return [FOLDER / name / "conf" for name in extras_with("conf")]


def options_of_extras(group: str) -> dict[str, Any]:
    """Return the classes of the options that extras add to a group, by the option, which is the extra's name."""
    classes = recorded("OPTIONS").items()
    return {name: by_group[group] for name, by_group in classes if group in by_group}


@cache
def recorded(part: str) -> dict[str, Any]:
    """Return this part of the records that have one, by the name of the extra."""
    parts = dict[str, Any]()
    for name in EXTRAS:
        record = importlib.import_module(f"stages.extras.{name}")
        if hasattr(record, part):
            parts[name] = getattr(record, part)
    return parts
