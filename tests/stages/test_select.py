"""Judged candidates become examples; and SFT on the chosen completions does all as DPO does it, but for the loss."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import select
from stages.config.blocks.pairs import Select
from stages.config.errors import UserError
from stages.labelers.verifier import Verifier
from stages.pipeline.graph import requested_nodes
from stages.store.manifest import read_manifest
from stages.store.records import Candidate, Check, Example, Judgement, Pair, load, save
from stages.training.batches import EpochSchedule
from tests import rows
from tests.helpers import TINY, Chain, build, nodes, refused, settings

CONTROL = "control=true"
GOOD = "Tides rise and fall because the moon pulls on the water of the sea."
LIKELIER = "The moon pulls on the sea, and so the tides rise and fall in it."


def prompt(name: str, task: str = "no_commas", reference: str | None = None) -> Example:
    request = f"Explain how the tides work, number {name}. Use no commas."
    checks = [Check("no_commas"), Check("on_topic", {"topics": [["tides"]]})]
    of_task = {"source": "open", "task": task, "split": "sft", "checks": checks}
    return rows.prompt(name, request, reference=reference, **of_task)


def answer(name: str, text: str, logprob: float = -20.0, finish_reason: str = "stop") -> Candidate:
    drawn = {"logprob": logprob, "finish_reason": finish_reason, "token_ids": None}
    return rows.candidate(name, text, 20, candidate_id=f"{name}/{text}/{logprob}", **drawn)


def judged(folder: Path, prompts: list[Example], candidates: list[Candidate]) -> dict[str, Path]:
    """A pool that the verifier has judged, and the data it comes from."""
    judgements: list[Judgement] = []
    for p in prompts:
        judgements += Verifier().judge(p, [c for c in candidates if c.prompt_id == p.id])
    rows.save_pool(folder, prompts, candidates, judgements)
    given, tested = prompt("with", reference="Given."), replace(prompt("test"), split="test")
    save(folder / "examples.parquet", [*prompts, given, tested], Example)
    return {"judged": folder, "data": folder}


def run_select(
    folder: Path, inputs: dict[str, Path], **changes: Any
) -> tuple[dict[str, Example], dict[str, Any]]:
    cfg: Select = replace(settings(*TINY).select, validation_fraction=0.0, **changes)
    metrics = select.run(cfg, inputs, rows.work(folder))
    return {e.id: e for e in load(folder / "examples.parquet", Example)}, metrics


def test_the_likeliest_answer_that_passes_is_the_demonstration(tmp_path: Path) -> None:
    pool = [
        answer("a", GOOD, -24.0),
        answer("a", LIKELIER.replace(",", ""), -22.0),
        answer("a", LIKELIER, -10.0),  # has a comma
        answer("a", GOOD + " It does", -9.0, "length"),
        answer("b", "Yes, no.", -20.0),
    ]
    selected, metrics = run_select(
        tmp_path / "out", judged(tmp_path / "pool", [prompt("a"), prompt("b")], pool)
    )
    assert selected.keys() == {"a", "with", "test"}, (
        "what has a reference stays, what got none goes"
    )
    assert selected["a"].reference == LIKELIER.replace(",", "")
    assert selected["a"].source == "selected"
    assert selected["with"].reference == "Given."
    assert metrics["refused"] == {"scores below select.min_score": 2, "is not finished": 1}
    assert metrics["selected"] == 1


def test_the_highest_score_is_chosen_and_likelihood_decides_among_equals(tmp_path: Path) -> None:
    pool = [answer("a", GOOD, -24.0), answer("a", LIKELIER.replace(",", ""), -10.0)]
    inputs = judged(tmp_path / "pool", [prompt("a")], pool)
    judgements = load(inputs["judged"] / "judgements.parquet", Judgement)
    for scores, expected in (((1.0, 0.55), GOOD), ((0.55, 0.55), LIKELIER.replace(",", ""))):
        scored = [replace(j, score=score) for j, score in zip(judgements, scores, strict=True)]
        save(inputs["judged"] / "judgements.parquet", scored, Judgement)
        folder = tmp_path / f"{scores[0]}"
        selected, _ = run_select(folder, inputs, min_score=0.5)
        assert selected["a"].reference == expected


def test_what_is_right_and_ran_out_of_tokens_ends_with_its_last_whole_sentence(
    tmp_path: Path,
) -> None:
    pool = [answer("a", GOOD + " It does", -9.0, "length")]
    selected, metrics = run_select(
        tmp_path / "out", judged(tmp_path / "pool", [prompt("a")], pool), max_mended=1
    )
    assert (selected["a"].reference, selected["a"].source, metrics["mended"]) == (GOOD, "mended", 1)


def test_a_task_gets_as_many_as_it_may_and_none_is_an_error(tmp_path: Path) -> None:
    prompts = [prompt(f"p{i}") for i in range(6)] + [prompt("other", task="other")]
    inputs = judged(tmp_path / "pool", prompts, [answer(p.id, GOOD) for p in prompts])
    selected, metrics = run_select(tmp_path / "out", inputs, max_per_task=2)
    assert sorted(e.task for e in selected.values() if e.source == "selected") == [
        "no_commas"
    ] * 2 + ["other"]
    assert metrics["refused"] == {"is of a task that has enough": 4}
    both = [*prompts[:2], prompt("both", task="no_commas + bold_parts")]
    pool = judged(tmp_path / "both", both, [answer(p.id, GOOD) for p in both])
    assert run_select(tmp_path / "of both", pool, max_per_task=2)[1]["selected"] == 2, (
        "a kind counts wherever it is asked for"
    )
    none = judged(tmp_path / "none", [prompt("a")], [answer("a", "No, never.")])
    with pytest.raises(UserError, match=r"\(1 scores below select.min_score\)"):
        run_select(tmp_path / "nothing", none)
    cut = judged(tmp_path / "cut", [prompt("a")], [answer("a", "No, never.", -9.0, "length")])
    with pytest.raises(UserError, match=r"select\.temperatures .*select\.max_new_tokens"):
        run_select(tmp_path / "nothing ends", cut)


def test_some_answers_are_held_out_whatever_else_there_is(tmp_path: Path) -> None:
    prompts = [prompt(f"p{i}") for i in range(60)]
    inputs = judged(tmp_path / "pool", prompts, [answer(p.id, GOOD) for p in prompts])
    cfg: Select = replace(settings(*TINY).select, max_per_task=60, validation_fraction=0.3)

    def chosen(pool):
        return select.best_answers(cfg, pool, Counter(), tmp_path / "sorted")

    splits = {e.id: e.split for e in chosen(inputs["judged"])}
    assert 8 < sum(split == "validation" for split in splits.values()) < 28
    fewer = judged(tmp_path / "fewer", prompts[:20], [answer(p.id, GOOD) for p in prompts[:20]])
    assert {e.id: e.split for e in chosen(fewer["judged"])}.items() <= splits.items()


def test_the_graph_asks_the_base_once_for_all_seeds(tmp_path: Path) -> None:
    own = nodes(tmp_path, "sft.demonstrations=selected", "data.tasks.open_sft=40", "seeds=[1,2]")
    assert own["sft"].inputs["data"] is own["select"]
    assert own["sample_base"].inputs["policy"] is own["base"]
    assert own["sft_seed_1"].inputs["data"].fingerprint == own["select"].fingerprint
    assert own["answer_sft"].inputs["data"] is own["data"]
    assert "select" not in nodes(tmp_path)


@pytest.mark.extended
def test_open_requests_are_answered_by_the_base_and_checked_whoever_samples_and_labels(
    tmp_path: Path,
) -> None:
    open_prompts = "data.tasks.open_sft=40"
    plain = nodes(tmp_path, open_prompts)
    assert (
        plain["sft"].fingerprint
        == nodes(tmp_path, open_prompts, "sft.demonstrations=selected")["sft"].fingerprint
    )
    assert (
        plain["sft"].fingerprint
        == nodes(tmp_path, open_prompts, "label.max_failed=0.2")["sft"].fingerprint
    )
    preferences = tmp_path / "preferences.jsonl"
    preferences.write_text("{}")
    server = "{base_url: 'http://127.0.0.1:1/v1', model: judge}"
    for overrides in (
        ["label=dataset", f"label.path={preferences}"],
        ["label=judge", f"label.endpoints=[{server}]"],
        ["sample=openai", f"sample.endpoint={server}"],
    ):
        assert (
            nodes(tmp_path, open_prompts, *overrides)["sft"].fingerprint == plain["sft"].fingerprint
        )
    assert "select" not in nodes(tmp_path, open_prompts, "sft=none")


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (
            ["data.tasks.open_sft=40", "sft.demonstrations=given"],
            "open requests have no reference answers",
        ),
        (["sft.demonstrations=selected", "sft=none"], "Add sft=default"),
        (
            ["control=true", "sft.adapter=lora", "dpo.adapter=continued"],
            "control=true needs another dpo.adapter",
        ),
    ],
)
def test_what_cannot_be_selected_is_refused(overrides: list[str], pattern: str) -> None:
    assert pattern in refused(*TINY, *overrides)


@pytest.fixture(scope="module")
def controlled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The tiny chain with its control, evaluated."""
    root = tmp_path_factory.mktemp("controlled") / "outputs"
    shutil.copytree(built, root, symlinks=True)
    build(root, CONTROL, "stage=eval")
    return Chain(root)


def test_a_control_sees_what_dpo_sees_in_its_order_and_steps(controlled: Chain) -> None:
    pairs = [
        p
        for p in load(controlled.folder("pairs", CONTROL) / "pairs.parquet", Pair)
        if p.split == "train"
    ]
    examples = load(controlled.folder("select_control", CONTROL) / "examples.parquet", Example)
    rows = [e for e in examples if e.split == "sft"]
    assert [(e.id, e.reference) for e in rows] == [(p.id, p.chosen[0]["content"]) for p in pairs]
    control, dpo = (read_manifest(controlled.folder(name, CONTROL)) for name in ("control", "dpo"))
    assert control["metrics"]["steps"] == dpo["metrics"]["steps"]
    assert control["inputs"]["base"]["fingerprint"] == dpo["inputs"]["policy"]["fingerprint"]
    blocks = [m["config"] for m in (control, dpo)]
    orders = [
        EpochSchedule([p.id for p in pairs], b["batch_size"], b["seed"], "rows").epoch(0)
        for b in blocks
    ]
    assert orders[0] == orders[1]


def test_a_control_of_several_rounds_follows_them_one_by_one(tmp_path: Path) -> None:
    two, one = nodes(tmp_path, CONTROL, "rounds=2"), nodes(tmp_path, CONTROL)
    first, last = two["control_1"], two["control"]
    assert (first.inputs["base"], last.inputs["base"]) == (two["sft"], first)
    for control, suffix in ((first, "_1"), (last, "")):
        assert control.inputs["data"].inputs["pairs"] == two[f"pairs{suffix}"]
    assert two["eval"].inputs["control"] == last
    assert {name for name in one if "control" in name} == {
        "select_control",
        "control",
        "answer_control",
    }


def test_sft_as_a_target_is_what_the_chain_starts_from_and_no_control(tmp_path: Path) -> None:
    with_seed = nodes(tmp_path, CONTROL, "seeds=[1]", "stage=sft")
    cfg = settings(*TINY, CONTROL, "seeds=[1]", "stage=sft")
    assert [n.fingerprint for n in requested_nodes(cfg, with_seed)] == [
        with_seed[k].fingerprint for k in ("sft_seed_1", "sft")
    ]


def test_the_control_of_a_model_that_came_trained_is_trained_all_the_same(tmp_path: Path) -> None:
    without_sft = nodes(tmp_path, CONTROL, "sft=none")
    assert (without_sft["sft"].config.train, without_sft["control"].config.train) == (False, True)
    assert without_sft["control"].fingerprint != nodes(tmp_path, CONTROL)["control"].fingerprint, (
        "it starts elsewhere"
    )


def test_a_control_keeps_the_contract_and_stands_in_every_table(controlled: Chain) -> None:
    contracts = [
        controlled.folder(name, CONTROL) / "model" / "contract.json" for name in ("sft", "control")
    ]
    assert contracts[0].read_bytes() == contracts[1].read_bytes()
    card = (controlled.folder("control", CONTROL) / "model" / "README.md").read_text()
    assert "chosen completions of pairs (" in card and "mended" not in card
    metrics = read_manifest(controlled.folder("eval", CONTROL))["metrics"]
    assert metrics["pass_rate"].keys() == {"base", "sft", "control", "policy"}
    assert {"control-sft", "policy-control"} <= metrics["delta"].keys()


def test_where_nothing_passes_form_is_mended_and_marked(tmp_path: Path) -> None:
    pool = [answer("a", LIKELIER), answer("b", "Nobody knows, really."), answer("c", GOOD)]
    prompts = [prompt("a"), prompt("b"), prompt("c")]
    selected, metrics = run_select(
        tmp_path / "out", judged(tmp_path / "pool", prompts, pool), max_mended=4
    )
    assert (selected["a"].reference, selected["a"].source) == (LIKELIER.replace(",", ""), "mended")
    assert "b" not in selected
    assert selected["c"].source == "selected"
    assert (metrics["selected"], metrics["mended"]) == (2, 1)


def test_a_control_takes_only_arguments_that_sft_has() -> None:
    robust = (
        "dpo.loss_type=[robust]",
        "dpo.trainer.label_smoothing=0.1",
        "dpo.trainer.weight_decay=0.1",
    )
    control = nodes(Path("outputs"), CONTROL, *robust)["control"].config
    assert control.trainer.given == settings(*TINY).dpo.trainer.given | {"weight_decay": 0.1}
