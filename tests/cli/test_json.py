"""`--json`: the real output of every command that has a result has the keys of the result's dataclass."""

import json
import os
import sys
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from stages.cli import json_output
from stages.cli.typed_line import read_line
from stages.commands.plan import PlanResult
from stages.commands.planning.calculated import CalculatedPlan
from stages.commands.result import Reply, Result
from stages.commands.run_result import RunResult, results_of_extras
from stages.config.command_record import Object
from stages.config.commands import COMMANDS, commands_on, import_run
from stages.config.exit_codes import ExitCode
from stages.config.installation import arguments_of
from stages.config.stage_table import Target
from tests.helpers import TINY, Chain, inside, settings


def reply(*line: str) -> dict[str, Any]:
    """Return the one object on stdout of a command with `--json`, which must fit `Reply`."""
    ran = inside(*TINY, *line, "--json")
    value = json.loads(ran.stdout)
    assert value["exit_code"] == ran.returncode
    assert [*value] == [each.name for each in fields(Reply)]
    assert not value["error"] or value["error"] in ran.stderr, "people read it, too"
    return dict(value)


def result(kind: type[Result], *line: str, code: int = ExitCode.done) -> dict[str, Any]:
    """Return the result in the reply, which must have the keys of its dataclass."""
    value = reply(*line)
    assert value["exit_code"] == code, value["error"]
    keys = [each.name for each in fields(kind) if each.name != "further"]
    if kind is RunResult:
        keys += results_of_extras([])
    assert [*value["result"]] == keys
    return dict(value["result"])


def test_a_plan_is_an_object_for_this_machine_and_another(chain: Chain) -> None:
    outputs = f"outputs={chain.root}"
    planned = result(PlanResult, outputs, "stage=plan", "dpo.beta=0.7")
    nodes = {node["name"]: node for node in planned["nodes"]}
    assert nodes["dpo"]["changes"] == ["beta 0.1 -> 0.7"]
    assert {"stage=report", "dpo.beta=0.7"} <= {*typed_arguments(planned["next_command"])}
    assert {name for name, node in nodes.items() if node["state"] == "cached"} >= {"sft", "pairs"}
    judge = "label.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"
    asked = result(PlanResult, outputs, "stage=plan", "label=judge", judge)
    assert [calls["node"] for calls in asked["calls"]] == ["label"]
    other = result(CalculatedPlan, outputs, "stage=plan", "plan.gpu=h200")
    assert all(node["memory"]["peak"] > 0 for node in other["nodes"])


@pytest.mark.extra("chat")
def test_a_run_names_its_nodes_pages_and_next_command(chain: Chain) -> None:
    outputs = f"outputs={chain.root}"
    made = result(RunResult, outputs, "stage=pairs", "pairs.max_length_ratio=9")
    states = {node["name"]: node["state"] for node in made["nodes"]}
    assert states == dict.fromkeys(states, "reused") | {"pairs": "built"}
    pairs = made["nodes"][-1]
    assert (
        json.loads((Path(pairs["folder"]) / "manifest.json").read_text())["metrics"]
        == (pairs["metrics"])
    )
    assert Path(made["page"]).exists() and Path(made["labels_page"]).exists()
    assert made["next_command"].startswith("python run.py stage=reference recipe=tiny")
    report = result(RunResult, outputs, "stage=report")
    assert report["page"] == str(chain.root / "report.html")
    assert report["answers_page"] == str(chain.root / "answers.html")
    following = typed_arguments(report["next_command"])
    assert settings(*following).stage in (*commands_on(Object.model), Target.report)
    assert report["nodes"][-1]["metrics"]["verdict"]


def typed_arguments(line: str) -> list[str]:
    """Return the arguments of a command that a reply names."""
    return [word for word in arguments_of(line) if not word.startswith("outputs=")]


def test_a_run_names_the_file_of_the_rows_that_it_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {n}.", "completion": str(n)} for n in range(30)] + [{"prompt": "Say."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"data.sources=[{{path: {file}}}]"
    line = ("stage=source", "data.max_bad=0.1", source, f"outputs={tmp_path / 'outputs'}")
    [node] = result(RunResult, *line)["nodes"]
    assert Path(node["quarantine"]).read_text().count("\n") == 1
    assert Path(node["quarantine"]).parent == Path(node["folder"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("dpo.bata=1",), "Did you mean 'beta'?"),
        (("stage=plan", "dpo.beta=0.1,0.2", "-m"), "--json is for one run"),
        pytest.param(("stage=gc",), "stage=gc has no JSON", marks=pytest.mark.extra("gc")),
    ],
)
def test_a_refusal_is_an_object(line: tuple[str, ...], words: str, tmp_path: Path) -> None:
    refusal = reply(f"outputs={tmp_path}", *line)
    assert (refusal["exit_code"], refusal["result"]) == (ExitCode.failed, None)
    assert words in refusal["error"]


def test_an_option_that_does_not_exist_is_an_object() -> None:
    ran = inside("--nonsense", "--json")
    assert ran.returncode == ExitCode.unknown_option
    assert json.loads(ran.stdout)["error"]


def test_a_bug_and_an_interrupt_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    for error, words in ((ZeroDivisionError("planted"), "planted"), (SystemExit("late"), "late")):
        with pytest.raises(type(error)), json_output.replying(read_line(("stage=sft",))):
            raise error
        value = json.loads(capsys.readouterr().out)
        assert (value["stage"], value["exit_code"]) == ("sft", ExitCode.failed)
        assert words in value["error"]


def test_stdout_has_the_object_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with json_output.replying(read_line(("stage=sft",))):
        sys.stdout.write("a library")
        os.system("echo a child")
    ran = capfd.readouterr()
    assert json.loads(ran.out)["exit_code"] == 0
    assert "a library" in ran.err and "a child" in ran.err


def test_every_command_has_a_known_result_or_none() -> None:
    for name, command in COMMANDS.items():
        returned = typing.get_type_hints(import_run(name))["return"]
        kinds = typing.get_args(returned) or [returned]
        expected = Result if command.prints_json else type(None)
        assert all(issubclass(kind, expected) for kind in kinds), name
