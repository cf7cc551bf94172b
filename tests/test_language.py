"""A ratchet for the language of the project: `tests/language.json` records how often each rule is broken.

A count may only fall. `python -m tests.test_language` lowers the record to today's counts, and refuses to raise it.
"""

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from stages.config.choices import Command
from stages.config.installation import ROOT
from tests.upstream.seams import SEAMS
from tests.upstream.test_table import overridden, reaches

RECORD = Path(__file__).with_name("language.json")
TREES = {
    "stages": [ROOT / "run.py", *sorted(ROOT.glob("stages/**/*.py"))],
    "tests": sorted(ROOT.glob("tests/**/*.py")),
}
PRONOUNS = set(
    "told given found known said made asked wanted kept held taken shown its those mine theirs ours others again "
    "aside apart beside usual".split()
)
OPENINGS = set("what whether that of those which where how as".split())
# Folders whose files are words of a setting: where they define a class of this kind, or bear one of these names.
KINDS = {"stages/labelers": "Labeler", "stages/samplers": "Sampler", "stages/formats": "Format"}
KINDS |= {"stages/tracking": "Run"}
CHOICES = {"stages/commands": [*Command]}

Offender = tuple[Path, int, str]
Modules = dict[Path, ast.Module]


def docstrings(modules: Modules) -> Iterator[Offender]:
    """List docstrings that begin with a pronoun or a conjunction in place of a verb or a noun."""
    for path, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split()
                if words and words[0].strip("`*\"'").lower() in OPENINGS:
                    yield path, getattr(node, "lineno", 1), " ".join(words[:8])


def names(modules: Modules) -> Iterator[Offender]:
    """List bindings whose whole name is a pronoun or a bare participle."""
    for path, tree in modules.items():
        exempt = {id(node) for body in interfaces(path, tree) for node in ast.walk(body)}
        for node in ast.walk(tree):
            if id(node) not in exempt and (name := bound_name(node)).strip("_") in PRONOUNS:
                yield path, node.lineno, name


def interfaces(path: Path, tree: ast.Module) -> Iterator[ast.stmt]:
    """List the fields of config blocks and the members of enumerations, whose names users type."""
    for node in ast.walk(tree):
        is_block = "stages/config/" in path.as_posix()
        if isinstance(node, ast.ClassDef) and (is_block or any("Enum" in ast.unparse(base) for base in node.bases)):
            yield from (field for field in node.body if isinstance(field, ast.Assign | ast.AnnAssign))


def bound_name(node: ast.AST) -> str:
    """Return the name that a node defines or assigns, else an empty string."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    return ""


def stems(modules: Modules) -> Iterator[Offender]:
    """List file stems that occur twice, except those of a stage, its config block, its objective and a setting."""
    paths = [path for path in modules if path.stem != "__init__"]
    for stem in sorted({path.stem for path in paths}):
        same = [path for path in paths if path.stem == stem]
        if len(same) > 1 and not all(may_repeat(path) for path in same):
            same_stems = ", ".join(str(path.relative_to(ROOT)) for path in same[1:])
            yield same[0], 1, f"{stem} is also the name of {same_stems}"


def may_repeat(path: Path) -> bool:
    folder = path.parent.relative_to(ROOT).as_posix()
    if folder in ("stages", "stages/config/blocks", "stages/objectives") or path.stem in CHOICES.get(folder, ()):
        return True
    kind = KINDS.get(folder)
    return kind is not None and bool(re.search(rf"^class \w+\(.*\b{kind}\b", path.read_text(encoding="utf-8"), re.M))


def prose(modules: Modules) -> Iterator[Offender]:
    """List literals of six or more words that an assertion or `match=` compares with: sentences may change."""
    for path, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) or (isinstance(node, ast.keyword) and node.arg == "match"):
                for text in ast.walk(node.test if isinstance(node, ast.Assert) else node.value):
                    if isinstance(text, ast.Constant) and len(str(text.value).split()) >= 6:
                        yield path, text.lineno, str(text.value)


def private_places(modules: Modules) -> Iterator[Offender]:
    """List each private or undocumented name of another library once, where the code first reads or overrides it."""
    places = {reach.name: (path, reach.line, reach.name) for path in modules for reach in reaches(path)}
    yield from places.values()
    yield from ((ROOT / "stages", 1, f"{name} is overridden") for name in overridden() - places.keys())


def seams(modules: Modules) -> Iterator[Offender]:
    """List the places of other libraries that tests/upstream watches, undocumented behaviour included."""
    yield from ((ROOT / "stages" / seam.files[0], 1, seam.place) for seam in SEAMS)


COUNTS: dict[str, dict[str, Callable[[Modules], Iterator[Offender]]]] = {
    "stages": {"docstrings": docstrings, "names": names, "stems": stems, "private": private_places, "seams": seams},
    "tests": {"docstrings": docstrings, "names": names, "prose": prose},
}
CASES = [(tree, rule) for tree, rules in COUNTS.items() for rule in rules]


@lru_cache
def parsed(tree: str) -> Modules:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in TREES[tree]}


def offenders(tree: str, rule: str) -> list[Offender]:
    """List what breaks a rule, in the most recently edited files first."""
    return sorted(COUNTS[tree][rule](parsed(tree)), key=lambda offender: -offender[0].stat().st_mtime)


@pytest.mark.parametrize(("tree", "rule"), CASES)
def test_a_count_only_falls(tree: str, rule: str) -> None:
    limit, breaches = json.loads(RECORD.read_text())[tree][rule], offenders(tree, rule)
    newest = [f"{path.relative_to(ROOT)}:{line}: {text}" for path, line, text in breaches[:20]]
    assert len(breaches) <= limit, "\n".join(
        [f"{rule} in {tree}: {len(breaches)}, recorded {limit}. Newest:", *newest]
    )


if __name__ == "__main__":
    record = json.loads(RECORD.read_text())
    counts = {tree: {rule: len(offenders(tree, rule)) for rule in rules} for tree, rules in COUNTS.items()}
    if higher := [f"{tree}.{rule}" for tree, rule in CASES if counts[tree][rule] > record[tree][rule]]:
        sys.exit(f"{', '.join(higher)}: the count is higher than the record. Mend what the test lists.")
    RECORD.write_text(json.dumps(counts, indent=2) + "\n")
