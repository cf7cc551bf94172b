"""GRPO and online DPO in real processes: a killed training ends with the same weights, and two processes train what one does."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages.config.installation import ROOT
from stages.store.store import Store
from stages.store.workspace import SCRATCH
from tests.helpers import TINY, Chain, build, command, nodes
from tests.pipeline.test_resume import checkpoints, kill_when

LINE = ("stage=grpo", "align=grpo", "grpo.temperature=1.5")


ONLINE = ("stage=online_dpo", "align=online_dpo", "online_dpo.temperature=1.5")


@pytest.mark.slow
@pytest.mark.parametrize("line", [LINE, ONLINE], ids=["grpo", "online_dpo"])
def test_a_killed_training_goes_on_with_the_same_rollouts(
    line: tuple[str, ...], chain: Chain
) -> None:
    build(chain.root, *line)
    objective = line[0].removeprefix("stage=")
    alone = chain.folder(objective, *line).rename(chain.root / "alone")
    node = nodes(chain.root, *line)[objective]
    store = Store(chain.root)
    shards = store.partial(node) / SCRATCH / "rollouts"

    def reached() -> bool:
        return (
            max(checkpoints(shards.parent), default=0) >= 4
            and len([*shards.glob("*.parquet")]) >= 6
        )

    cadence = (f"{objective}.runtime.save_steps=2",)
    kill_when(reached, chain.root, objective, False, *line[1:], cadence=cadence)
    drawn = [*shards.glob("*.parquet")]
    assert len(drawn) > max(checkpoints(shards.parent))
    build(chain.root, *line)
    after = store.find(node)
    assert after is not None
    assert after["digest"] == json.loads((alone / "manifest.json").read_text())["digest"]
    assert len(after["attempts"]) == 2


GATED = (
    "label=ensemble",
    "label.combine=gate",
    "label.members=[{labeler: verifier, veto: 0.01}, {labeler: own}]",
    f"label.own={{file: {ROOT / 'docs' / 'examples' / 'brief.py'}, name: Brief}}",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [(), ("grpo.beta=0.1", "grpo.loss_type=grpo"), ("grpo.sync_every=3",), GATED],
)
def test_two_processes_train_what_one_does(changes: tuple[str, ...], chain: Chain) -> None:
    line = (*LINE, *changes)
    build(chain.root, *line)
    one = chain.folder("grpo", *line)
    manifest = chain.manifest("grpo", *line)
    one = one.rename(chain.root / "alone")
    two = ("launch=ddp", "launch.processes=2", "grpo.runtime.token_budget=60")
    ran = command(*TINY, f"outputs={chain.root}", *line, *two)
    assert ran.returncode == 0, ran.stderr
    folders = one, chain.folder("grpo", *line)
    weights, together = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert max(float((weights[name] - together[name]).abs().max()) for name in weights) <= 1e-5
    metrics = chain.manifest("grpo", *line)["metrics"]
    assert (manifest["metrics"]["processes"], metrics["processes"]) == (1, 2)
    for name in (
        "reward",
        "eval_reward",
        "entropy",
        "dead_steps",
        "tokens",
        *(["kl"] if "grpo.beta=0.1" in changes else []),
    ):
        assert metrics[name] == pytest.approx(manifest["metrics"][name], abs=1e-5), name


@pytest.mark.slow
def test_two_processes_train_on_the_pairs_of_one(chain: Chain) -> None:
    build(chain.root, *ONLINE)
    manifest = chain.manifest("online_dpo", *ONLINE)
    one = chain.folder("online_dpo", *ONLINE).rename(chain.root / "alone")
    two = ("launch=ddp", "launch.processes=2", "online_dpo.runtime.token_budget=60")
    ran = command(*TINY, f"outputs={chain.root}", *ONLINE, *two)
    assert ran.returncode == 0, ran.stderr
    folders = one, chain.folder("online_dpo", *ONLINE)
    weights, together = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert max(float((weights[name] - together[name]).abs().max()) for name in weights) <= 1e-5
    metrics = chain.manifest("online_dpo", *ONLINE)["metrics"]
    for name in ("reward", "eval_reward", "rewards/margins", "dead_steps"):
        assert metrics[name] == pytest.approx(manifest["metrics"][name], abs=1e-5), name


def test_an_audit_of_labels_trains_nothing_again(tmp_path: Path) -> None:
    plain, audited = (
        nodes(tmp_path, "align=grpo", *more)["grpo"] for more in ((), ("label.audit=20",))
    )
    assert plain.fingerprint == audited.fingerprint
