"""KTO in whole runs: a file of thumbs, an arm beside DPO, a killed training, and two processes."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages.store.records import Candidate, load
from stages.store.single_completions import UnpairedPreference
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, command, nodes

LINE = ("stage=kto", "align=kto", "kto.batch_size=8")


@pytest.mark.extended
def test_a_thumbs_file_trains_every_row_and_its_prompts_are_asked(
    chain: Chain, tmp_path: Path
) -> None:
    file, count = tmp_path / "thumbs.jsonl", 60
    rows = [
        {"prompt": f"Add {i} and 1.", "completion": str(i + 1 + i % 2), "label": i % 2 == 0}
        for i in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    line = ("align=kto", "label=dataset", f"label.path={file}", "unpaired.validation_fraction=0.3")
    build(chain.root, "stage=report", *line)
    metrics = chain.manifest("kto", *line)["metrics"]
    assert metrics["completions"] + metrics["held_out"] == count
    assert metrics["completions_dropped"] == {}
    results = json.loads((chain.folder("eval", *line) / "results.json").read_text())
    assert (
        results["gives_verdict"][0] == "learnt"
        and results["learnt"]["pairs"] == metrics["held_out"]
    )
    unpaired = load(chain.folder("unpaired", *line) / "unpaired.parquet", UnpairedPreference)
    held_out = {row.prompt_id for row in unpaired if row.split == "validation"}
    node = nodes(chain.root, *line)["answer_held_out_policy"]
    assert {
        a.prompt_id for a in load(Store(chain.root).folder(node) / "answers.parquet", Candidate)
    } == held_out


def test_an_arm_shares_the_candidates_and_labels_of_dpo(chain: Chain) -> None:
    wired = nodes(chain.root, "arms=[kto]")
    assert wired["unpaired_kto"].inputs["judged"].fingerprint == wired["label"].fingerprint
    alone = nodes(chain.root, "align=kto")
    assert wired["kto"].fingerprint == alone["kto"].fingerprint
    build(chain.root, "stage=report", "arms=[kto]")
    results = json.loads((chain.folder("eval", "arms=[kto]") / "results.json").read_text())
    assert {"kto", "policy"} <= results["models"].keys() and "kto-sft" in results["differences"]


@pytest.fixture
def trained(chain: Chain) -> tuple[Chain, Path]:
    """A chain without its KTO node, and the node's folder of an undisturbed training by one process."""
    build(chain.root, *LINE)
    alone = chain.root / "alone"
    chain.folder("kto", *LINE).rename(alone)
    return chain, alone


@pytest.mark.slow
def test_two_processes_train_what_one_does(trained: tuple[Chain, Path]) -> None:
    chain, alone = trained
    ran = command(*TINY, f"outputs={chain.root}", *LINE, "launch=ddp", "launch.processes=2")
    assert ran.returncode == 0, ran.stderr
    folders = alone, chain.folder("kto", *LINE)
    weights, together = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert max(float((weights[name] - together[name]).abs().max()) for name in weights) <= 1e-5
    before, after = (
        json.loads((folder / "manifest.json").read_text())["metrics"] for folder in folders
    )
    for name in ("rewards/chosen", "rewards/rejected", "kl", "eval_loss"):
        assert after[name] == pytest.approx(before[name], abs=1e-5), name
