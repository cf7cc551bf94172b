"""Tests of the source of stages: edits in a copy of the package, and the stages that each one changes."""

import ast
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.config.extras import EXTRAS
from stages.config.schema import OPTIONS as OPTION_TABLES
from stages.config.schema import RunEval
from stages.config.stage_table import DRAWING, STAGES
from stages.pipeline.graph import wire_unpinned
from stages.store import stage_sources
from stages.store.stage_sources import OPTIONS, RECORD, Sources, require_source
from tests.helpers import TINY, needing, settings
from tests.store.checkout import LOSS, OTHER_LOSS, content

ALL = {*STAGES}


def edited_stages(package: Path) -> dict[str, list[str]]:
    """Return the edited stages of a package, with the edited files."""
    sources = Sources(package)
    edited = {stage: sources.edited(stage) for stage in STAGES}
    return {stage: source.files for stage, source in edited.items() if source}


def test_a_copy_is_not_edited(package: Path) -> None:
    assert edited_stages(package) == {}
    assert not [file for file in Sources(package).changed if (package / file).exists()]


TRAINED = {"sft", "dpo", "kto", *DRAWING, "reward"}
SAMPLED = {"sample", "answer", *DRAWING} | ({"benchmark"} & {*STAGES})
LABELLED = {"label", *DRAWING, "eval", "report"}


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        # code of a stage, of one objective, of what all objectives import, and of a package itself
        ("dpo.py", "from functools import partial", "from our_tools import partial", {"dpo"}),
        ("objectives/dpo.py", LOSS, OTHER_LOSS, {"dpo", "online_dpo"}),
        ("objectives/__init__.py", '"""Each', '1\n"""Each', TRAINED),
        # methods, properties and functions of settings, and what these use
        ("config/blocks/training.py", "self.beta / 2 if", "self.beta / 3 if", {"dpo"}),
        ("config/blocks/objective.py", "Weights.bf16 if", "Weights.fp32 if", TRAINED),
        ("config/blocks/evaluation.py", 'self.sampler == "hf"', "False", {"answer"}),
        ("config/blocks/sampling.py", "self.pool or None", "None", {"sample"}),
        ("config/blocks/data.py", "quota * rows // total", "rows", {"data"}),
        ("config/blocks/labels.py", 'case "verifier":', 'case "checks":', LABELLED),
        # what all stages use of the store, and what some do
        ("store/workspace.py", 'point = {"step": step, **metrics}', "point = metrics", ALL),
        ("store/source_files.py", "[file for file in paths if", "[file for file in [] if", SAMPLED | {"source", "data", "label"}),
        # what runs every stage
        ("pipeline/build.py", "stage.run(config, inputs, out)", "stage.run(config, {}, out)", ALL),
        ("launch/job_file.py", "return stage.run(cfg,", "return stage.run(None,", ALL),
        ("launch/worker.py", "metrics = run_stage(job, out)", "metrics = {}", ALL),
        ("hardware/process.yaml", 'CUBLAS_OVERRIDE: "0"', 'CUBLAS_OVERRIDE: "1"', ALL),
        # files that are loaded by name, or beside a module
        needing("suites", "models/templates/plain.jinja", "{%- for", "  {%- for", {"sft", "answer", "eval", "report"}),
        ("labelers/verifier.py", "from ", "import sys\nfrom ", {"label", *DRAWING}),
        ("samplers/vllm_driver.py", "import json", "import ujson as json", SAMPLED),
        needing("benchmarks", "extras/benchmarks/lm_eval_driver.py", "import json", "import ujson as json", {"benchmark"}),
        needing("suites", "extras/suites/prompts.yaml", "title: Refusal", "title: The refusal", {"data", "eval", "report"}),
        ("tasks/families/counting.yaml", "Count these and", "# Count these and", {"data", "source", "base"}),
        ("formats/tasks/intent.yaml", "What do they want?", "What?", SAMPLED | {"source", "data", "label"}),
        ("pages/page.html.jinja", "{% block", "{%- block", {"report"}),
    ],
)  # fmt: skip
def test_an_edit_changes_the_stages_that_use_it(
    file: str, old: str, new: str, stages: set[str], package: Path
) -> None:
    text = (package / file).read_text()
    assert old in text
    with content(package / file, text.replace(old, new, 1)):
        assert edited_stages(package) == {stage: [file] for stage in stages}
    assert edited_stages(package) == {}


@pytest.mark.parametrize(
    "file", ["objectives/dpo.py", "config/blocks/training.py", "store/workspace.py"]
)
def test_words_and_layout_of_code_change_nothing(file: str, package: Path) -> None:
    text = (package / file).read_text()
    first_docstring = text.partition('"""')[2].partition('"""')[0]
    for other in (
        text.replace(first_docstring, "Other words."),
        text.replace("    def ", "    # a comment\n\n    def "),
        f"\n\n{text}\n\n# the end",
        text.replace("\n", "\r\n"),
        text.rstrip("\n"),
        f"\ufeff{text}",
        ast.unparse(ast.parse(text)),
    ):
        assert other != text
        with content(package / file, other.encode()):
            assert edited_stages(package) == {}


def test_comments_and_layout_of_data_change_nothing_and_texts_in_it_do(package: Path) -> None:
    file = package / "tasks/open_requests.yaml"
    text = file.read_text()
    with content(file, "# a comment\n\n" + text.replace("\n", "\r\n")):
        assert edited_stages(package) == {}
    # in a block of text, a line that begins with # is content, and so is an empty one
    block = text.index("|\n") + 2
    indent = len(text[block:]) - len(text[block:].lstrip(" "))
    for line in (" " * indent + "# a line\n", "\n"):
        with content(file, text[:block] + line + text[block:]):
            assert "data" in edited_stages(package)


@pytest.mark.parametrize(
    "file",
    [
        "objectives/dpo.py~",
        "objectives/#dpo.py#",
        "objectives/.#dpo.py",
        "objectives/dpo.py.orig",
        "objectives/dpo.bak.py",
        "labelers/judge (copy).py",
        "labelers/.ipynb_checkpoints/judge.py",
        "__pycache__/dpo.py",
        "notes.txt",
        "objectives/unused.py",
        "conf/labelers/judge.py",
    ],
)
def test_stray_files_change_nothing(file: str, package: Path) -> None:
    with content(package / file, "print('anything')"):
        assert edited_stages(package) == {}


def test_a_new_file_counts_where_it_is_loaded(package: Path) -> None:
    with content(package / "labelers/mine.py", "class Mine(Labeler): ..."):
        assert edited_stages(package) == {
            stage: ["labelers/mine.py"] for stage in ("label", *DRAWING)
        }
    dpo = package / "objectives/dpo.py"
    with content(dpo, f"from stages.objectives.ours import factor\n{dpo.read_text()}"):
        digests = set()
        for number in (1, 2):
            with content(package / "objectives/ours.py", f"factor = {number}"):
                assert edited_stages(package) == {
                    stage: ["objectives/dpo.py", "objectives/ours.py"]
                    for stage in ("dpo", "online_dpo")
                }
                digests.add(Sources(package).digest("dpo"))
        assert len(digests) == 2


def test_every_edit_has_its_own_digest(package: Path) -> None:
    file = package / "objectives/dpo.py"
    text = file.read_text()
    digests = {Sources(package).digest("dpo")}
    for factor in (2, 3):
        with content(file, text.replace(LOSS, OTHER_LOSS.replace("7", str(factor)))):
            digests.add(Sources(package).digest("dpo"))
    assert len(digests) == 3


def test_what_nobody_can_read_is_an_error_of_the_stages_that_need_it(package: Path) -> None:
    for broken in ("def run(:", "x = '\x00'", b"\xff", None):
        with content(package / "kto.py", broken):
            with pytest.raises(
                UserError, match=r"stages/kto\.py: .*\. (Correct|Restore) it"
            ) as error:
                Sources(package).edited("kto")
            assert "\n" not in str(error.value)
            assert Sources(package).edited("dpo") is None
    with (
        content(package / "tasks/words.yaml", "verbs: ["),
        pytest.raises(UserError, match=r"words\.yaml"),
    ):
        Sources(package).edited("data")
    with (
        content(package / "models/loading.py", None),
        pytest.raises(UserError, match=r"loading\.py"),
    ):
        Sources(package).edited("dpo")


def test_a_file_that_only_a_setting_names_may_be_left_out(package: Path) -> None:
    with content(package / "labelers/source_order.py", None):
        assert edited_stages(package) == {
            stage: ["labelers/source_order.py"] for stage in ("label", *DRAWING)
        }


@pytest.mark.parametrize("record", [None, "", "[]", "{}", '{"stages": {"dpo": {}}, "files": {}}',
    '{"stages": {}, "files": {"dpo.py": {"bytes": 1, "parts": {}}}}'])  # fmt: skip
def test_a_damaged_record_is_an_error_with_a_way_out(record: str | None, package: Path) -> None:
    with (
        content(package / RECORD, record),
        pytest.raises(UserError, match=r"tests\.pipeline\.test_versions"),
    ):
        Sources(package)


@pytest.mark.extended
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("align=kto", "arms=[dpo,grpo]", "control=true"),
        needing("suites", ("eval.suites.names=[refusal]",)),
        ("reward.source.path=preferences.jsonl", "label=reward_model", "eval/judged=judge"),
        ("label=dataset", "data.path=preferences.jsonl", "template=chatml", "sft=none"),
        ("label=ensemble", "sample.pool=[{n: 2}, {file: answers.jsonl}]", "eval/judged=judge"),
        ("data.sources=[{path: rows.jsonl}]", "sft.demonstrations=selected"),
        needing("benchmarks", ("benchmark.tasks=[arc]",)),
        ("label=source_order", "sample=vllm", "eval/judged=ensemble"),
        needing("human", ("label=human", "eval/judged=human")),
    ],
)
def test_the_classes_of_a_nodes_settings_belong_to_its_stage(overrides: tuple[str, ...]) -> None:
    sources = Sources()
    for node in wire_unpinned(settings(*TINY, *overrides)).values():
        parts = sources.source(node.stage)
        for kind in classes_in(node.config):
            file = "/".join(kind.__module__.split(".")[1:])
            of_core = f"{file}.py:{kind.__name__}"
            record_of_extra = f"{file}/__init__.py"
            assert {of_core, record_of_extra} & parts.keys(), node.stage


def classes_in(block: Any) -> set[type]:
    """Return the classes of a block of settings, of their bases, and of the blocks inside."""
    values = [block]
    for value in values:  # which grows by the values inside
        if isinstance(value, list):
            values += value
        elif is_dataclass(value):
            values += [getattr(value, key.name) for key in fields(value)]
    blocks = [type(value) for value in values if is_dataclass(value)]
    bases = {base for kind in blocks for base in kind.__mro__}
    return bases - {object, RunEval}  # which the schema composes of its bases alone


def test_every_option_of_the_settings_is_in_the_table_of_options() -> None:
    named = list[dict[str, type]]()
    for refs in OPTIONS.values():
        file, _, name = refs[0].partition(":")
        module = import_module(f"stages.{file.removesuffix('.py').replace('/', '.')}")
        named.append(vars(module)[name])
    assert len(named) == len(OPTION_TABLES)
    for table in OPTION_TABLES.values():
        assert {name: kind for name, kind in table.items() if name not in EXTRAS} in named


def test_a_stage_that_changed_since_its_command_started_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_start = Sources(package)
    monkeypatch.setattr(stage_sources, "of_process", lambda: at_start)
    digest = at_start.digest("dpo")
    dpo = package / "objectives/dpo.py"
    text = dpo.read_text()
    with content(dpo, f"# a comment\n{text}"):
        require_source("dpo", digest)
    with content(dpo, text.replace(LOSS, OTHER_LOSS)):
        require_source("sft", at_start.digest("sft"))
        with pytest.raises(UserError, match=r"dpo: .*objectives/dpo\.py.*same command again"):
            require_source("dpo", digest)
    require_source("dpo", digest)
