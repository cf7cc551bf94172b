"""Tests of the whole graph through the command line: the nodes that are built or reused, and the messages."""

import json
import shlex
import shutil
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path

import pytest

from stages.commands.expected_costs import Forecast
from stages.commands.node_settings import ABSENT, shown_settings
from stages.commands.plan import plan_nodes
from stages.config.blocks.labels import Verifier
from stages.config.errors import UserError
from stages.config.stage_table import STAGES
from stages.models.contract import load_contract
from stages.pipeline import provenance
from stages.pipeline.graph import requested_nodes
from stages.store.records import Candidate, load
from stages.store.store import Store
from tests.budgets import spent
from tests.helpers import TINY, Chain, build, inside, nodes, settings

BUILT = (
    "base",
    "data",
    "sft",
    "sample",
    "label",
    "pairs",
    "reference",
    "dpo",
    "answer",
    "eval",
    "report",
)


def test_one_command_makes_the_whole_chain_in_a_minute_of_one_core(built: Path) -> None:
    built_record = json.loads(built.with_name("built.json").read_text())
    assert built_record["cpu_seconds"] < 60
    chain = Chain(built)
    assert {stage: chain.count()[stage] for stage in BUILT} == {
        stage: 3 if stage == "answer" else 1 for stage in BUILT
    }
    assert (built / "report.html").stat().st_size > 10_000
    assert {p.name for p in (built / "latest").iterdir()} == set(BUILT)
    for stage in BUILT:
        assert (built / "latest" / stage / "manifest.json").exists()
        assert f"{stage} " in built_record["stdout"]
    assert not list(built.glob("*/*.partial"))


def test_a_chain_that_is_there_takes_no_time_and_builds_nothing(chain: Chain) -> None:
    before = {p: p.stat().st_mtime_ns for p in chain.root.glob("*/*/manifest.json")}
    spent_before = spent()
    ran = inside(*TINY, f"outputs={chain.root}")
    assert spent() - spent_before < 5, "more than a few reads and one composition"
    assert ran.returncode == 0, ran.stderr
    assert "reused" in ran.stdout
    assert {p: p.stat().st_mtime_ns for p in chain.root.glob("*/*/manifest.json")} == before


def test_the_manifest_says_where_a_node_came_from(built: Path) -> None:
    chain = Chain(built)
    for name, node in nodes(chain.root).items():
        manifest = chain.manifest(name)
        assert manifest["fingerprint"] == node.fingerprint
        assert {role: i["fingerprint"] for role, i in manifest["inputs"].items()} == {
            role: i.fingerprint for role, i in node.inputs.items()
        }
        assert {"torch", "transformers", "trl", "python"} <= set(manifest["versions"])
        assert manifest["git"]["commit"]
        assert manifest["wall_seconds"] > 0
        assert manifest["peak_memory"] > 2**20
        assert manifest["started"] < manifest["ended"]
        for file, entry in manifest["files"].items():
            assert (chain.folder(name) / file).stat().st_size == entry["bytes"]
        assert manifest["command"].startswith(f"python run.py stage={node.stage}")
        assert str(chain.root.parent) not in json.dumps(manifest["settings"]), (
            "settings name content, not places"
        )


def test_another_beta_rebuilds_only_what_depends_on_it(chain: Chain) -> None:
    before = chain.count()
    build(chain.root, "dpo.beta=0.7")
    new_nodes = chain.count() - before
    assert new_nodes == {"dpo": 1, "answer": 1, "eval": 1, "report": 1}


def test_upstream_require_names_the_missing_node_and_its_command(chain: Chain) -> None:
    build(chain.root, "stage=dpo", "upstream=require")
    shutil.rmtree(chain.folder("pairs"))
    ran = inside(*TINY, f"outputs={chain.root}", "stage=dpo", "upstream=require", "dpo.beta=0.3")
    assert ran.returncode != 0
    pairs_fingerprint = nodes(chain.root)["pairs"].fingerprint
    assert (
        f"needs pairs {pairs_fingerprint}, which is not built. Build it with: python run.py stage=pairs recipe=tiny"
        in ran.stderr
    )
    assert "dpo.beta=0.3" in ran.stderr, "the command carries the other settings along"


@pytest.mark.extended
def test_rebuild_builds_again_and_keeps_what_follows_where_nothing_changed(chain: Chain) -> None:
    ended = {name: chain.manifest(name)["ended"] for name in ("sft", "sample", "dpo", "eval")}
    build(chain.root, "rebuild=sft")
    assert chain.manifest("sft")["ended"] > ended.pop("sft")
    assert {name: chain.manifest(name)["ended"] for name in ended} == ended, (
        "fp32 on one machine: the same bits again"
    )


def test_a_user_enters_with_an_sft_checkpoint_of_their_own(chain: Chain, tmp_path: Path) -> None:
    checkpoint = tmp_path / "mine"
    shutil.copytree(chain.folder("sft") / "model", checkpoint)
    (checkpoint / "contract.json").unlink()
    entered = ("sft=none", "model.random_init=null", f"model.path={checkpoint}")
    build(chain.root, "stage=dpo", *entered)
    assert chain.manifest("sft", *entered)["metrics"]["trained"] is False
    pairs = chain.manifest("pairs", *entered)["metrics"]["pairs"]
    assert pairs == chain.manifest("pairs")["metrics"]["pairs"], (
        "the same weights under the same contract"
    )


def test_two_rounds_divide_the_prompts(chain: Chain) -> None:
    build(chain.root, "rounds=2", "stage=dpo")
    pools = [m for _, m in Store(chain.root).manifests("sample") if m["config"]["rounds"] == 2]
    assert sorted(m["config"]["round"] for m in pools) == [0, 1]
    assert (
        sum(m["metrics"]["prompts"] for m in pools)
        == chain.manifest("sample")["metrics"]["prompts"]
    )
    assert {"sample_1", "dpo_1", "sample", "dpo"} <= set(nodes(chain.root, "rounds=2"))
    drawn = load(chain.folder("sample", "rounds=2") / "candidates.parquet", Candidate)
    assert {c.policy for c in drawn} == {chain.folder("dpo_1", "rounds=2").name}
    assert {c.tokenizer for c in drawn} == {load_contract(chain.folder("sft") / "model").digest}
    assert chain.manifest("reference", "rounds=2")["metrics"]["retokenised"] == 0
    last = chain.manifest("dpo", "rounds=2")
    assert last["inputs"]["policy"]["stage"] == "dpo"


def test_prompts_of_their_own_let_a_run_with_more_rounds_reuse_every_node(tmp_path: Path) -> None:
    own = ("stage=dpo", "sample.prompts_per_round=16", "dpo.batch_size=1")
    two = nodes(tmp_path, *own, "rounds=2")
    three = nodes(tmp_path, *own, "rounds=3")
    for stage in ("sample", "label", "pairs", "reference", "dpo"):
        assert two[f"{stage}_1"].fingerprint == three[f"{stage}_1"].fingerprint
        assert two[stage].fingerprint == three[f"{stage}_2"].fingerprint


@pytest.mark.extended
@pytest.mark.parametrize(
    "typed",
    [
        "control=true control_pairs=coin rounds=2",
        "data.tasks.open_sft=4 seeds=[1]",
        "align=kto arms=[grpo]",
    ],
)
def test_a_command_that_is_shown_requests_its_node(typed: str, tmp_path: Path) -> None:
    """`stage=sft` does not build the control, an SFT after DPO, nor `stage=label` the labels of demonstrations."""
    graph = nodes(tmp_path, *typed.split())
    for name, node in graph.items():
        words = shlex.split(
            provenance.command(provenance.stage_to_type(node), [*TINY, *typed.split()])
        )
        requested = requested_nodes(settings(*words[2:]), graph)
        assert node.fingerprint in {
            n.fingerprint for target in requested for n in target.lineage
        }, name


def test_an_input_that_is_rebuilt_meanwhile_stops_the_publishing_and_what_was_begun_is_dropped(
    chain: Chain,
) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["pairs"]
    shutil.rmtree(store.folder(node))
    manifest = store.folder(node.inputs["judged"]) / "manifest.json"
    with store.claim(node) as folder:
        assert folder is not None
        (folder / "half").touch()
        manifest.write_text(manifest.read_text().replace('"digest": "', '"digest": "0'))
        with pytest.raises(
            UserError, match=r"rebuilt an input while this ran\. Type the same command"
        ):
            store.publish(node, {})
    with store.claim(node) as folder:
        assert folder is not None
        assert not (folder / "half").exists(), "it was made from what the input held before"


def test_plan_runs_nothing_and_says_what_changed(chain: Chain) -> None:
    before = chain.count()
    ran = inside(
        *TINY, f"outputs={chain.root}", "stage=plan", "dpo.beta=0.3", "sft.learning_rate=1e-4"
    )
    assert ran.returncode == 0, ran.stderr
    lines = {line.split()[0]: line for line in ran.stdout.splitlines() if line.strip()}
    assert "cached" in lines["base"]
    assert "learning_rate 0.005 -> 0.0001" in lines["sft"]
    assert "beta 0.1 -> 0.3" in ran.stdout
    assert "input policy" in lines["sample"]
    assert "To build: " in ran.stdout
    assert chain.count() == before


def test_plan_says_what_a_new_version_builds_again(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = STAGES["dpo"]
    monkeypatch.setitem(STAGES, "dpo", replace(before, version=before.version + 1))
    graph = nodes(built)
    store = Store(built)
    plan_nodes(graph, store, Forecast(graph, store)).show()
    assert f"version {before.version} -> {before.version + 1}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_key_that_is_null_has_no_say_in_a_fingerprint(built: Path) -> None:
    """Check that null keys are left out, so that a new optional key changes no fingerprint."""
    node = nodes(built)["label"]
    assert asdict(node.config)["audit"] is None
    assert ABSENT not in shown_settings(node.settings, None).values()
    later = make_dataclass("Later", [("language", str | None, None)], bases=(Verifier,))
    block = later(**vars(node.config))
    assert replace(node, config=block).fingerprint == node.fingerprint
    assert replace(node, config=replace(block, language="de")).fingerprint != node.fingerprint
