"""Labels of single completions: what is desirable, what is left out and why, and that TRL's KTO learns from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

from stages import unpaired
from stages.config.choices import Unfinished
from stages.config.errors import UserError
from stages.store.records import Judgement, Pair, load, save
from stages.unpaired import UnpairedPreference
from tests.helpers import Chain, build, nodes, settings
from tests.rows import candidate, judged_pool, work
from tests.stages.test_pairs import SCORED


def build_unpaired(
    folder: Path, judged: Path, **keys: Any
) -> tuple[dict[str, bool], dict[str, Any]]:
    """The label of each text, and the metrics."""
    out, cfg = work(folder), replace(settings("recipe=tiny").unpaired, **keys)
    metrics = unpaired.run(cfg, {"judged": judged}, out)
    rows = load(out / "unpaired.parquet", UnpairedPreference)
    assert [row.prompt[-1]["content"] for row in rows] == [row.prompt_id for row in rows]
    assert len(rows) == metrics["completions"] == metrics["desirable"] + metrics["undesirable"]
    return {row.completion[0]["content"]: row.label for row in rows}, metrics


@pytest.mark.parametrize(("threshold", "desirable"), [(1.0, "a"), (0.5, "abd"), (0.01, "abd")])
def test_a_score_is_desirable_from_the_threshold_on(
    threshold: float, desirable: str, tmp_path: Path
) -> None:
    labels, metrics = build_unpaired(
        tmp_path / "out", judged_pool(tmp_path / "pool", SCORED), threshold=threshold
    )
    assert labels == {text: text in desirable for text in "abcd"}
    assert metrics["left_out"] == {}


def test_what_has_no_label_is_left_out_and_counted(tmp_path: Path) -> None:
    answers = {
        "q": [
            (candidate("q", "good"), 1.0),
            (candidate("q", " good ", 4), 1.0),
            (candidate("q", "bad"), 0.0),
            (candidate("q", "unjudged"), None),
            (candidate("q", "on and on", finished=False), 1.0),
            (candidate("q", "off and off", finished=False), 0.5),
        ]
    }
    judged = judged_pool(tmp_path / "pool", answers)
    labels, metrics = build_unpaired(tmp_path / "kept", judged)
    assert labels == {"good": True, "bad": False, "off and off": False}
    why = {"no judgement": 1, "the text of another one": 1, "desirable and unfinished": 1}
    assert metrics["left_out"] == why
    labels, metrics = build_unpaired(tmp_path / "dropped", judged, unfinished=Unfinished.drop)
    assert labels == {"good": True, "bad": False}
    assert metrics["left_out"] == why | {"undesirable and unfinished": 1}


def test_of_preferences_what_wins_more_than_it_loses_is_desirable(tmp_path: Path) -> None:
    judged = judged_pool(
        tmp_path / "pool", {"q": [(candidate("q", text), None) for text in "abcd"]}
    )
    [a, b, c, _] = (candidate("q", text).candidate_id for text in "abcd")
    votes = [("a", a, b), ("b", c, a), ("a", b, c), ("tie", b, c)]
    save(
        judged / "judgements.parquet",
        [Judgement("q", "x", a=i, b=j, preference=p) for p, i, j in votes],
        Judgement,
    )
    labels, metrics = build_unpaired(tmp_path / "out", judged, threshold=0.99)
    assert labels == {"a": True, "c": False}
    assert metrics["left_out"] == {"as many preferences for it as against it": 1, "no judgement": 1}


def test_labels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    judged = judged_pool(
        tmp_path / "pool", {"q": [(candidate("q", "a"), 0.5), (candidate("q", "b"), 0.0)]}
    )
    pattern = r"^unpaired\.threshold=0\.7: all 2 .* are undesirable\. .* from 0 to 0\.5\.$"
    with pytest.raises(UserError, match=pattern):
        build_unpaired(tmp_path / "low", judged, threshold=0.7)
    with pytest.raises(UserError, match=r"0 to 0\.5"):
        build_unpaired(tmp_path / "high", judged, threshold=0.0)
    labels, _ = build_unpaired(tmp_path / "as_told", judged, threshold=0.5)
    assert labels == {"a": True, "b": False}


def test_trls_kto_learns_from_the_tables_rows(chain: Chain, tmp_path: Path) -> None:
    """Check that the stored completions equal the judged ones and share the prompts of DPO's pairs."""
    build(chain.root, "stage=unpaired")
    overrides = ("stage=unpaired",)
    file = chain.folder("unpaired", *overrides) / "unpaired.parquet"
    rows = load_dataset(
        "parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )
    held_out = {row["prompt_id"] for row in rows if row["split"] == "validation"}
    pairs = load(chain.folder("pairs") / "pairs.parquet", Pair)
    assert held_out & {pair.prompt_id for pair in pairs}
    assert all((pair.split == "validation") == (pair.prompt_id in held_out) for pair in pairs)

    sft, trained = (
        chain.folder("sft") / "model",
        rows.filter(lambda row: row["split"] == "train").select(range(8)),
    )
    options = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_steps": 2,
        "disable_tqdm": True,
    }
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(sft),
        args=KTOConfig(output_dir=str(tmp_path / "kto"), per_device_train_batch_size=4, **options),
        train_dataset=trained,
        processing_class=AutoTokenizer.from_pretrained(sft),
    )
    assert trainer.train().training_loss > 0
    read = [trainer.processing_class.decode(row["completion_ids"]) for row in trainer.train_dataset]
    assert len(read) == len(trained)
    assert all(
        row["completion"][0]["content"] in text for row, text in zip(trained, read, strict=True)
    )
    assert [row["label"] for row in trainer.train_dataset] == trained["label"]


def test_no_other_node_knows_of_it(chain: Chain) -> None:
    plain = nodes(chain.root)
    with_threshold = nodes(chain.root, "stage=unpaired", "unpaired.threshold=0.5")
    assert set(with_threshold) - set(plain) == {"unpaired"}
    assert all(
        node.fingerprint == with_threshold[name].fingerprint
        for name, node in plain.items()
        if name != "report"
    )
    more_pairs = nodes(
        chain.root, "stage=unpaired", "unpaired.threshold=0.5", "pairs.max_per_prompt=3"
    )
    assert more_pairs["unpaired"].fingerprint == with_threshold["unpaired"].fingerprint
