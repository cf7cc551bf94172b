"""Tests of templates from outside: hostile and faulty ones end in one line that names setting and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.phrased import parse_task
from stages.models.rendering import validate_chat_template
from stages.store import templates
from stages.store.templates import Refusal, TemplateFault, guard_template, read_variables, render
from tests.helpers import refused

HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "include": "{% include 'itself' %}",
    "climbing": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "syntax": "{% if %}",
}


def setting(kind: str, template: str, folder: Path) -> tuple[str, list[str]]:
    """Return the setting of a template of this kind, and the overrides that use it."""
    file = folder / f"{kind}.file"
    if kind == "task":
        file.write_text(
            json.dumps({"columns": {"text": "text"}, "answer": "no", "phrasings": [template]})
        )
        (folder / "rows.jsonl").write_text('{"text": "a"}\n')
        return "data.sources[0].task", [
            f"data.sources=[{{path: {folder / 'rows.jsonl'}, task: {file}}}]"
        ]
    file.write_text(template)
    if kind == "chat":
        return "sft.template.path", ["template=file", f"sft.template.path={file}"]
    judge = ["label=judge", "label.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"]
    return "label.rubric", [*judge, f"label.rubric={file}"]


KINDS = ("rubric", "task", "chat")
# Each template once in every run, all pairs at night.
CASES = [
    pytest.param(name, kind, marks=[pytest.mark.slow] if i % 3 != j else [])
    for i, name in enumerate(HOSTILE)
    for j, kind in enumerate(KINDS)
]


@pytest.mark.extended
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_hostile_template_is_one_line_when_the_configuration_is_composed(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    key, overrides = setting(kind, HOSTILE[name], tmp_path)
    line = refused("recipe=tiny", f"outputs={tmp_path / 'outputs'}", *overrides)
    assert line.startswith(f"{key}={tmp_path}")
    assert len(line) < 1000
    assert not list((tmp_path / "outputs").glob("*/*/manifest.json"))


def test_an_error_names_its_line() -> None:
    values: dict[str, Any] = {"items": [1]}
    with pytest.raises(UserError, match=r"^line 2: TemplateSyntaxError: "):
        read_variables("x\n{% if %}")
    with pytest.raises(TemplateFault, match=r"^line 3: ZeroDivisionError: "):
        render("x\n\n{{ items|length // 0 }}", values)
    with pytest.raises(Refusal, match=r"^line 2: 'b' is undefined$"):
        render("{{ items }}\n{{ b }}", values)


def test_a_template_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    stopped = pytest.raises(UserError, match=r"^rubric=x: line 2: .* 0.2 s")
    with stopped, guard_template("rubric=x", "Mend it"):
        render("\n" + HOSTILE["nested loops"], {})
    assert render("{{ a }}", {"a": "b"}) == "b"


def test_a_models_template_that_reaches_for_python_is_named_with_its_folder() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = f"{{{{ messages[0].content }}}}\n{HOSTILE['climbing']}"
    with pytest.raises(UserError, match=r"^model\.path=FOLDER, chat_template: line 2: .*__class__"):
        validate_chat_template(tokenizer, "model.path=FOLDER")
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    validate_chat_template(tokenizer, "model.path=FOLDER")


def test_yaml_with_aliases_is_refused() -> None:
    with pytest.raises(UserError, match=r"task.yaml: .*line 2: an alias, \*a"):
        parse_task("columns: &a {k: v}\nlabels: *a\n", "task.yaml")
    with pytest.raises(UserError, match=r"task.yaml: "):
        parse_task("[" * 1500, "task.yaml")
