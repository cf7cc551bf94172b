"""Tests of stage versions: a change in a stage's source must be recorded, with or without a new version.

`python -m tests.pipeline.test_versions` rewrites `versions.json`: run it after raising a stage's number in `STAGES`
(stages/pipeline/stage_table.py), or to wave a change through that makes the same thing.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from stages.config.installation import ROOT
from stages.pipeline.stage_table import STAGES

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
RECORD = Path(__file__).with_name("versions.json")
NOT_OF_THE_RESULT = {
    "stages.config.schema",
    *(f"stages.config.blocks.{path.stem}" for path in (ROOT / "stages/config/blocks").glob("*.py")),
    "stages.config.choices",
    "stages.config.errors",
    "stages.store.digests",
    "stages.store.sealed_json",
    "stages.store.manifest",
    "stages.store.store",
    "stages.store.workspace",
    "stages.store.source_files",
}


# Files that a module reads or imports by their folder, or starts as a program: no import statement names them. Texts
# that stand beside a module under its name are its source, too.
BY_FOLDER = {
    "stages.tasks.generator": "stages/tasks/families/*.py",
    "stages.tasks.constraint": "stages/tasks/constraints/*.py",
    "stages.evaluation.engine": "stages/evaluation/lm_eval_driver.py",
    "stages.models.chat_templates": "stages/models/templates/*.jinja",
    "stages.models.model_card": "stages/models/*.jinja",
    "stages.pages.environment": "stages/pages/*.jinja",
    "stages.formats.phrased": "stages/formats/**/*.yaml",
    "stages.label": "stages/labelers/*.py",
    "stages.sample": "stages/samplers/*.py",
    "stages.answer": "stages/samplers/*.py",
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def imported(path: Path) -> list[str]:
    """Return the names of our modules and their parts that a file imports."""
    names = list[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages"):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def sources(module: str) -> set[Path]:
    """Return the project's files that a stage's module imports, itself included, except what decides no result."""
    files: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = ROOT / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not path.exists() or path in files or name in NOT_OF_THE_RESULT:
            continue
        files |= {path, *[texts for texts in [path.with_suffix(".yaml")] if texts.exists()]}
        by_folder = [*ROOT.glob(BY_FOLDER[name])] if name in BY_FOLDER else []
        files |= {each for each in by_folder if each.suffix != ".py"}
        waiting += [
            *imported(path),
            *(module_of(each) for each in by_folder if each.suffix == ".py"),
        ]
    return files


def source_of(path: Path) -> str:
    """Return what decides a file's results: the syntax tree without docstrings, or the lines of another file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return json.dumps(plain_tree(ast.parse(text)))
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def plain_tree(node: object) -> object:
    """Return a syntax tree as lists, as `ast.dump` would write it. Docstrings are left out, and so are empty fields, of
    which every version of Python has others."""
    if isinstance(node, list):
        return [plain_tree(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    present = {name: value for name, value in fields.items() if value is not None and value != []}
    return [type(node).__name__, *([name, plain_tree(value)] for name, value in present.items())]


@cache
def file_digest(path: Path) -> str:
    return hashlib.sha256(source_of(path).encode()).hexdigest()


def digest(module: str) -> str:
    """Return the digest of a stage's code."""
    digests = [file_digest(path) for path in sorted(sources(module))]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def current() -> dict[str, dict[str, object]]:
    modules = {stage: f"stages.{stage}" for stage in STAGES}
    return {
        stage: {"version": STAGES[stage].version, "source": digest(module)}
        for stage, module in modules.items()
    }


def test_every_changed_stage_was_raised_or_waved_through() -> None:
    recorded = json.loads(RECORD.read_text())
    now = current()
    changed = [stage for stage in now if now[stage] != recorded.get(stage)]
    assert not changed, (
        f"the source of {', '.join(changed)} changed. If such a stage makes something else now, raise its number in "
        "stage_table.py; then, or if it makes the same, run: python -m tests.pipeline.test_versions"
    )


def test_every_name_in_these_tables_is_a_file() -> None:
    modules = [
        name
        for name in (*NOT_OF_THE_RESULT, *BY_FOLDER)
        if not (ROOT / f"{name.replace('.', '/')}.py").exists()
    ]
    folders = [pattern for pattern in BY_FOLDER.values() if not [*ROOT.glob(pattern)]]
    assert not modules + folders


def test_a_part_counts_as_source_of_the_stages_that_use_it() -> None:
    names = {path.name for path in sources("stages.sample")}
    assert {"sample.py", "hf.py", "contract.py", "loading.py"} <= names
    assert "pipeline.py" not in names
    assert {"editing.py", "words.py"} <= {path.name for path in sources("stages.data")}
    assert "composition.py" in {path.name for path in sources("stages.data")}
    assert {"finding.yaml", "glossary.yaml"} <= {path.name for path in sources("stages.report")}
    assert {"intent.yaml", "detection.yaml"} <= {path.name for path in sources("stages.source")}
    assert "judge.py" in {path.name for path in sources("stages.label")}
    assert "chatml.jinja" in {path.name for path in sources("stages.sft")}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
