"""Long tests: everything that reads a model runs on the pretended accelerator, in several processes too."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from stages.store.records import Judgement, load
from tests.helpers import TINY, Chain, build, command, inside
from tests.pretend.test_chain import weight_gap
from tests.stages.test_judged import TOY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "overrides",
    [
        ("stage=report",),
        ("stage=report", "precision=bf16"),
        ("stage=reward",),
        ("stage=dpo", "sft.adapter=lora", "dpo.adapter=lora"),
        ("stage=dpo", "sft.packing=true", "sft.max_length=128", "dpo.forward=padded"),
    ],
    ids=" ".join,
)
def test_chains_run_without_a_tensor_on_the_wrong_device(
    overrides: tuple[str, ...], pretend: ModuleType, tmp_path: Path
) -> None:
    with pretend.strict():
        build(tmp_path / "outputs", *overrides)


def test_a_reward_model_labels_and_compares_as_on_the_cpu(
    pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    """Preferences of a file train the reward model, which labels candidates and compares the policy with SFT."""
    options = (
        "label=reward_model",
        "eval/judged=reward_model",
        f"reward.source.path={TOY}",
        "reward.max_length=256",
    )
    chains = [
        Chain(shutil.copytree(built, tmp_path / place, symlinks=True))
        for place in ("pretend", "cpu")
    ]
    for is_pretended, chain in zip((True, False), chains, strict=True):
        with pretend.available(is_pretended), pretend.strict():
            build(chain.root, "stage=eval", *options)
    assert chains[0].manifest("label", *options)["metrics"]["device"].startswith("pretend")
    for name in ("label", "judged_sft"):
        files = [chain.folder(name, *options) / "judgements.parquet" for chain in chains]
        for judgement, other in zip(*(load(file, Judgement) for file in files), strict=True):
            assert judgement.candidate_id == other.candidate_id, name
            assert float(judgement.raw or "nan") == pytest.approx(
                float(other.raw or "nan"), abs=1e-3
            ), name
    results = [
        json.loads((chain.folder("eval", *options) / "results.json").read_text())
        for chain in chains
    ]
    rows = [each["judged"]["sft"] for each in results]
    assert rows[0]["win_rate"] == rows[1]["win_rate"]
    assert rows[0]["judged"] > 0


def test_a_chat_answers_as_on_the_cpu(pretend: ModuleType, chain: Chain) -> None:
    typed = "Name a colour.\nName another one.\n/new\nName a colour.\n"
    line = (*TINY, f"outputs={chain.root}", "stage=chat", "chat.max_new_tokens=12")
    outputs = []
    for is_pretended in (True, False):
        with pretend.available(is_pretended), pretend.strict():
            ran = inside(*line, typed=typed)
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout[ran.stdout.index("> ") :])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [("sft", ()), ("dpo", ()), ("dpo", ("sft.adapter=lora", "dpo.adapter=lora"))],
)
def test_two_processes_train_what_one_does(
    stage: str, overrides: tuple[str, ...], pretend: ModuleType, tmp_path: Path
) -> None:
    """The pretended devices of the processes have their own collectives, over gloo. With sharding: test_fsdp.py."""
    root, options = tmp_path / "outputs", {"env": pretend.environment(), "timeout": 600}
    line = (*TINY, f"outputs={root}", f"stage={stage}", *overrides)
    one_process = command(*line, **options)
    assert one_process.returncode == 0, one_process.stderr
    folder = Chain(root).folder(stage, *overrides)
    folder.rename(tmp_path / "alone")
    two = command(*line, "launch=ddp", "launch.processes=2", **options)
    assert two.returncode == 0, two.stderr
    together = Chain(root).manifest(stage, *overrides)["metrics"]
    assert (together["processes"], together["device"]) == (2, "pretend:0")
    assert weight_gap(tmp_path / "alone", folder) < 1e-5
