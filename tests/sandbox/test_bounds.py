"""Tests of templates: hostile ones end in one line, and good ones are rendered as in transformers."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from stages.sandbox import jinja_process
from stages.sandbox.jinja_process import Refusal, TemplateFault, Unbounded, load_yaml, read_facts, render
from tests.budgets import spent
from tests.helpers import command, refused

SHARED = "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
HOSTILE = {
    "product": "{{ 'a' * 10 ** 10 }}",
    "power": "{{ 7 ** (10 ** 9) }}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops of text": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "loop in itself": "{% for i in 'x' * 9999 recursive %}{{ loop('x' * 9999) }}{% endfor %}",
    "width": "{{ '%1000000000d'|format(1) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "center": "{{ 'a'|center(10 ** 9) }}",
    "indent": "{{ ('a\\n' * 100000)|indent(10 ** 5) }}",
    "batch": "{{ [1]|batch(10 ** 9, 'x')|list }}",
    "join": "{{ (['a' * 100000] * 100000)|join(',') }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "doubled text": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "shared lists": SHARED + "{% endfor %}{{ ns.a }}",
    "compared lists": SHARED + "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "surrogate": "{{ '\\ud800' }}",
    "include": "{% include 'itself' %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "megabytes": "{{ request }}" * 70000,
    "climbing": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}
MESSAGES = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]


def setting(kind: str, template: str, folder: Path) -> tuple[str, list[str]]:
    """Return the setting of a template of this kind, and the overrides that use it."""
    file = folder / f"{kind}.file"
    if kind == "task":
        file.write_text(json.dumps({"columns": {"text": "text"}, "answer": "no", "phrasings": [template]}))
        (folder / "rows.jsonl").write_text('{"text": "a"}\n')
        return "data.sources[0].task", [f"data.sources=[{{path: {folder / 'rows.jsonl'}, task: {file}}}]"]
    file.write_text(template)
    if kind == "chat":
        return "sft.template.path", ["template=file", f"sft.template.path={file}"]
    judge = ["label=judge", "label.judge.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"]
    return "label.judge.rubric", [*judge, f"label.judge.rubric={file}"]


KINDS = ("rubric", "task", "chat")
# Each once in every run, all of them at night: what is bounded by time takes its second.
CASES = [
    pytest.param(name, kind, marks=[pytest.mark.slow] if i % 3 != j else [])
    for i, name in enumerate(HOSTILE)
    for j, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_hostile_template_is_one_line_when_the_configuration_is_composed(
    name: str, kind: str, tmp_path: Path
) -> None:
    key, overrides = setting(kind, HOSTILE[name], tmp_path)
    peak_memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, spent()
    line = refused("recipe=tiny", f"outputs={tmp_path / 'outputs'}", *overrides)
    assert line.startswith(f"{key}={tmp_path}")
    assert len(line) < 1000
    assert spent() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_memory < 1 << 18, "KiB of this process"
    assert not list((tmp_path / "outputs").glob("*/*/manifest.json"))


@pytest.mark.parametrize(
    ("kind", "name"), [("rubric", "product"), ("task", "shared lists"), ("chat", "compared lists")]
)
def test_a_command_refuses_a_hostile_template_within_a_gibibyte(kind: str, name: str, tmp_path: Path) -> None:
    key, overrides = setting(kind, HOSTILE[name], tmp_path)
    bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    ran = command("recipe=tiny", "stage=plan", f"outputs={tmp_path / 'outputs'}", *overrides, preexec_fn=bound)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {key}={tmp_path}")
    assert ran.stderr.count("\n") == 1


def test_yaml_that_multiplies_itself_is_refused() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    merged = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
    for text in (bomb, merged):
        with pytest.raises(Unbounded, match=r"(longer|more) than"):
            load_yaml(text)
    with pytest.raises((TemplateFault, Unbounded)):
        load_yaml("[" * 5000)
    assert load_yaml("labels: {1: yes, b: 'no'}") == {"labels": {"1": True, "b": "no"}}


@pytest.mark.parametrize(
    "file", sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")), ids=lambda f: f.stem
)
def test_a_published_chat_template_is_rendered_as_transformers_renders_it(file: Path) -> None:
    source, tokens = file.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"}
    for messages in (MESSAGES, [{"role": "system", "content": "Be brief."}, *MESSAGES, *MESSAGES], MESSAGES[:1]):
        for to_answer in (False, True):
            variables: dict[str, Any] = {"messages": messages, "add_generation_prompt": to_answer, **tokens}
            options = {"return_assistant_tokens_mask": "{% generation" in source} | tokens
            try:
                texts, spans = render_jinja_template(
                    [messages], None, None, source, add_generation_prompt=to_answer, **options
                )
            except Exception:
                with pytest.raises(TemplateFault):
                    render(source, [{**variables, "tools": None, "documents": None}], chat=True)
                continue
            [(text, marked)] = render(source, [{**variables, "tools": None, "documents": None}], chat=True)
            assert text == texts[0]
            assert marked == (spans[0] if spans else marked)


def test_a_fault_names_its_line() -> None:
    for chat in (False, True):
        with pytest.raises(TemplateFault, match=r"^line 2: TemplateSyntaxError: "):
            read_facts("x\n{% if %}", chat)
        with pytest.raises(TemplateFault, match=r"^line 3: ZeroDivisionError: "):
            render("x\n\n{{ messages|length // 0 }}", [{"messages": MESSAGES}], chat)
        with pytest.raises(Unbounded, match=r"^line 2: .* 256 MiB"):
            render("x\n{{ messages * 10 ** 9 }}", [{"messages": MESSAGES}], chat)
    with pytest.raises(Refusal, match=r"^line 2: no tools$"):
        render("x\n{{ raise_exception('no tools') }}", [{}], chat=True)


def test_only_what_cannot_grow_is_rendered_in_this_process() -> None:
    plain = "{{ text|trim }}{% if label %}: {{ label or 'none' }}{% endif %}"
    assert read_facts(plain) == ({"text", "label"}, True)
    assert render(plain, [{"text": " a ", "label": "b"}])[0].text == "a: b"
    grows = (
        "{{ a * 2 }}",
        "{% for i in a %}{% endfor %}",
        "{{ a.b() }}",
        "{{ a|center(9) }}",
        "{{ a ~ a }}",
        "{{ a[0] }}",
    )
    assert not any(read_facts(each).plain for each in (*grows, "{% set x = a %}", "{% macro f() %}{% endmacro %}"))
    assert not read_facts("{{ a }}", chat=True).plain
    with pytest.raises(Refusal, match="'b' is undefined"):
        render("{{ a }}{{ b }}", [{"a": "x"}])
    with pytest.raises(TemplateFault, match="surrogate"):
        render("{{ a }}", [{"a": "\ud800"}])


def test_a_template_is_bounded_by_what_it_computes_and_not_by_a_clock() -> None:
    """Check that only computing time counts, since a busy machine may stop a process for a while."""
    process = jinja_process.running_process().process
    process.send_signal(signal.SIGSTOP)
    events = list[str]()
    resume = threading.Timer(1.5, lambda: (events.append("resumed"), process.send_signal(signal.SIGCONT)))
    resume.start()
    assert render("{{ a * 3 }}", [{"a": "x"}])[0].text == "xxx"
    events.append("rendered")
    assert events == ["resumed", "rendered"]


def test_the_process_knows_no_keys_and_ends_with_the_one_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "plumb")
    with pytest.raises(Unbounded):
        render("{{ a * 10 ** 10 }}", [{"a": "x"}])
    render("{{ a * 3 }}", [{"a": "x"}])  # by another process
    process = jinja_process.running_process().process
    assert b"plumb" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    code = "from stages.sandbox.jinja_process import *\nrender('{{ a * 3 }}', [{'a': 'x'}])\n"
    code += "print(running_process().process.pid)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = int(ran.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_fork_has_a_process_of_its_own() -> None:
    own_pid = jinja_process.running_process().process.pid
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        text = render("{{ a * 3 }}", [{"a": "y"}])[0].text
        child_process = jinja_process.running_process().process
        os.write(write, f"{child_process.pid} {text}".encode())
        child_process.kill()
        os._exit(0)
    os.waitpid(child, 0)
    pid, text = os.read(read, 100).decode().split()
    assert (text, int(pid) != own_pid) == ("yyy", True)
    assert render("{{ a * 3 }}", [{"a": "x"}])[0].text == "xxx"
