"""GRPO and online DPO in real processes: a killed training ends with the same weights, and two processes train what one does."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages.config.installation import ROOT
from stages.store.store import Store
from stages.store.workspace import SCRATCH, read_curves
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


RELATIVE = """
def vowels(completions):
    return [sum(map(text[0]["content"].count, "aeiou")) / 3 for text in completions]

vowels.relative = True
"""
VETOED = (
    "label=ensemble",
    "label.members=[{labeler: own, veto: 0.3}, {labeler: verifier}]",
    "label.own={file: OWN, name: vowels}",
    "grpo.max_new_tokens=6",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [(), ("grpo.beta=0.1", "grpo.loss_type=grpo"), ("grpo.sync_every=3",), GATED, VETOED],
)
def test_two_processes_train_what_one_does(
    changes: tuple[str, ...], chain: Chain, tmp_path: Path
) -> None:
    """Floors and vetoes of relative scores are those of the whole step."""
    own = tmp_path / "vowels.py"
    own.write_text(RELATIVE, encoding="utf-8")
    line = [*LINE, *(each.replace("OWN", str(own)) for each in changes)]
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


@pytest.mark.extended
@pytest.mark.parametrize(
    "budget", [pytest.param(60, marks=pytest.mark.slow), 150]
)  # one pair in a micro-batch, and several
def test_two_processes_train_on_the_pairs_of_one(budget: int, chain: Chain) -> None:
    """An odd number of pairs leaves a process an idle one, which is in no figure of the curves."""
    build(chain.root, *ONLINE)
    one = chain.folder("online_dpo", *ONLINE).rename(chain.root / "alone")
    two = ("launch=ddp", "launch.processes=2", f"online_dpo.runtime.token_budget={budget}")
    ran = command(*TINY, f"outputs={chain.root}", *ONLINE, *two)
    assert ran.returncode == 0, ran.stderr
    folders = one, chain.folder("online_dpo", *ONLINE)
    weights, together = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert max(float((weights[name] - together[name]).abs().max()) for name in weights) <= 1e-5
    figures = ("reward", "eval_reward", "loss", "entropy", "num_tokens", "rewards/margins")
    for point, other in zip(*map(read_curves, folders), strict=True):
        for name in (*figures, "logps/chosen", "mean_token_accuracy"):
            assert other.get(name) == pytest.approx(point.get(name), abs=1e-4), name


def test_an_audit_of_labels_trains_nothing_again(tmp_path: Path) -> None:
    plain, audited = (
        nodes(tmp_path, "align=grpo", *more)["grpo"] for more in ((), ("label.audit=20",))
    )
    assert plain.fingerprint == audited.fingerprint
