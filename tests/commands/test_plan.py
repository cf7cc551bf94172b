"""The times, counts and changes that a plan prints."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.commands import plan
from stages.commands.planning import cost, expected_calls
from stages.commands.planning.counts import CHARACTERS
from stages.config.installation import ROOT
from stages.hardware import machine
from stages.store.records import Example, load
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store
from tests.endpoints.servers import Model, running
from tests.helpers import TINY, Chain, build, inside, nodes, refused
from tests.labelers.judging import judging

KIND = cost.Kind("sft", "bf16", "none", 1, 1e8, False, True, "2 x this")


def cost_of(
    root: Path, name: str, *overrides: str, more_stores: tuple[Path, ...] = ()
) -> cost.Cost:
    store, planned = Store(root), nodes(root, *overrides)
    return cost.expected_cost(
        planned[name], planned, store, cost.RunHistory(store, *map(Store, more_stores))
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a node's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def scaled(tokens: float, *finished: tuple[float, float]) -> tuple[int | None, float]:
    """Return what a history of nodes with these tokens and seconds predicts."""
    history = object.__new__(cost.RunHistory)
    history.finished = [cost.FinishedNode(KIND, each, each, seconds) for each, seconds in finished]
    return history.scaled_time(KIND, tokens)


def test_work_beside_a_node_and_a_kill_do_not_make_the_next_one_slower() -> None:
    assert scaled(200, (100, 11), (100, 50), (100, 13)) == (200, pytest.approx(22))


def test_an_early_node_ran_other_code() -> None:
    assert scaled(100, *((100, seconds) for seconds in (1, 20, 21, 22, 23, 24))) == (
        100,
        pytest.approx(20),
    )


def test_a_manifest_says_what_its_node_ran_on(chain: Chain) -> None:
    processors = {manifest["processor"] for _, manifest in Store(chain.root).manifests()}
    assert processors == {machine.processor_name(False)}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        name = next(
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        )
        assert name.partition(":")[2].strip() in processors.pop()


def test_plan_counts_the_pairs_that_there_are(chain: Chain) -> None:
    """`pairs=all` makes more pairs. Once they are built, DPO is expected to read more tokens in proportion."""
    build(chain.root, "stage=pairs", "pairs=all")
    before, after = (chain.manifest("pairs", *more)["metrics"] for more in ((), ("pairs=all",)))
    factor = (after["pairs"] - after["held_out"]) / (before["pairs"] - before["held_out"])
    assert factor > 1.1
    spent, predicted = chain.manifest("dpo"), cost_of(chain.root, "dpo", "pairs=all")
    assert predicted.tokens == pytest.approx(spent["metrics"]["tokens"] * factor, rel=0.1)
    assert predicted.seconds > spent["wall_seconds"]


def test_plan_expects_of_a_stage_what_it_took_with_other_settings(chain: Chain) -> None:
    for name, other in (("sft", "sft.seed=7"), ("sample", "sample.seed=7")):
        spent, predicted = chain.manifest(name), cost_of(chain.root, name, other)
        assert predicted.seconds == pytest.approx(spent["wall_seconds"], rel=0.01)
        assert predicted.tokens == spent["metrics"]["tokens"]


def test_twice_the_tokens_take_twice_as_long(chain: Chain) -> None:
    spent, predicted = (
        chain.manifest("sft"),
        cost_of(chain.root, "sft", f"sft.epochs={2 * nodes(chain.root)['sft'].config.epochs}"),
    )
    assert predicted.tokens == 2 * spent["metrics"]["tokens"]
    assert predicted.seconds == pytest.approx(2 * spent["wall_seconds"], rel=0.01)


def unmeasured(costs: cost.Cost) -> bool:
    return costs.tokens is None and math.isnan(costs.seconds) and costs.memory > 0


def test_another_sampler_or_adapter_is_not_measured(chain: Chain) -> None:
    for name, other in (
        ("sample", "sample=generate"),
        ("sft", "sft.adapter=lora"),
        ("reference", "dpo.forward=padded"),
    ):
        assert unmeasured(cost_of(chain.root, name, other)), name


def test_plan_shares_the_prompts_among_rounds(chain: Chain) -> None:
    once, half = (
        chain.manifest("sample")["metrics"]["tokens"],
        cost_of(chain.root, "sample_1", "rounds=2"),
    )
    assert half.tokens == pytest.approx(once / 2, abs=1)
    few = cost_of(chain.root, "sample", "sample.prompts=12")
    assert few.tokens == pytest.approx(once / 4, abs=1), "of 48"
    own = cost_of(chain.root, "sample_1", "rounds=3", "sample.prompts_per_round=12")
    assert own.tokens == few.tokens, "whatever the number of rounds"
    pairs = chain.manifest("dpo")["metrics"]["tokens"]
    assert cost_of(chain.root, "dpo", "sample.prompts=12").tokens == pytest.approx(
        pairs / 4, rel=0.5
    )


def test_a_model_that_is_not_trained_takes_no_time_of_one_that_was(chain: Chain) -> None:
    assert unmeasured(cost_of(chain.root, "sft", "sft=none"))


def test_a_stage_that_never_ran_is_not_measured(chain: Chain) -> None:
    """The time of SFT on the same model does not predict DPO."""
    shutil.rmtree(chain.root / "dpo")
    assert unmeasured(cost_of(chain.root, "dpo"))


def test_plan_takes_no_other_machines_time(chain: Chain) -> None:
    for folder, _ in Store(chain.root).manifests():
        edit(folder, lambda manifest: manifest.update(processor="64 x another"))
    assert unmeasured(cost_of(chain.root, "sft", "sft.seed=7"))


def test_a_new_store_profits_from_what_ran_for_another(chain: Chain, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    assert unmeasured(cost_of(fresh, "sft"))
    predicted, spent = cost_of(fresh, "sft", more_stores=(chain.root,)), chain.manifest("sft")
    assert predicted.seconds == pytest.approx(spent["wall_seconds"], rel=0.5), (
        "the rows of the new store are not counted yet"
    )


def test_plan_does_not_know_the_rows_of_files_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')
    predicted = cost_of(
        tmp_path / "outputs", "sft", "data=file", f"data.sources=[{{path: {file}}}]"
    )
    assert predicted.tokens is None and math.isnan(predicted.seconds)


def test_the_total_names_the_nodes_it_leaves_out(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(OUTPUTS, str(tmp_path / "elsewhere"))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')

    def total(*overrides: str, root: Path = built) -> tuple[float | None, list[str]]:
        """Return the minutes, and the nodes without a time."""
        plan.plan_nodes(nodes(root, *overrides), Store(root)).show()
        words = capsys.readouterr().out.split("To build: ")[1].split()
        minutes = float(words[words.index("min,") - 1]) if "min," in words else None
        names = words[words.index("yet") + 2 :] if "yet" in words else []
        return minutes, [name.strip(",.") for name in names]

    fresh = tmp_path / "fresh"
    assert total(root=fresh) == (None, list(nodes(fresh)))
    monkeypatch.setenv(OUTPUTS, str(built))
    minutes, names = total(root=fresh)
    assert minutes is not None and names == []
    judge = "label.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"
    for labeler in (
        ("label=judge", judge),
        ("label=human",),
    ):  # the time of a verifier does not predict other labelers
        assert "label" in total(*labeler)[1]
    read = total(
        "data=file", f"data.sources=[{{path: {file}, splits: {{sft: 0.5, preference: 0.5}}}}]"
    )
    assert {"sft", "sample", "dpo"} <= set(read[1])


def test_what_a_run_refuses_to_evaluate_is_not_planned(tmp_path: Path) -> None:
    untested = [f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks")]
    line = (*TINY, f"outputs={tmp_path}", *untested, "pairs.validation_fraction=0")
    ran = inside(*line, "stage=plan")
    assert ran.returncode == 0, ran.stderr
    output = " ".join(ran.stdout.split())
    assert f"Not planned: answer, versus, eval, report. {refused(*line)}" in output
    assert {line.split()[0] for line in ran.stdout.splitlines() if "to build" in line} == {
        *("base", "data", "sft", "sample", "label", "pairs", "reference", "dpo")
    }


def test_plan_names_files_and_says_where_only_the_content_differs(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    toys = (ROOT / "stages/tasks/toy_preferences.jsonl").read_text()

    def plan_text(content: str, name: str = "mine.jsonl") -> str:
        (tmp_path / name).write_text(content)
        entered = ("label=dataset", f"label.path={tmp_path / name}")
        planned = nodes(chain.root, *entered)
        plan.plan_nodes(planned, Store(chain.root)).show()
        return " ".join(capsys.readouterr().out.split())

    assert "labeler verifier -> dataset" in plan_text(toys)
    build(chain.root, "stage=label", "label=dataset", f"label.path={file}")
    assert "path mine.jsonl: its content" in plan_text(toys.replace("a", "b", 1))
    assert "path mine.jsonl -> other.jsonl" in plan_text(toys + "\n", "other.jsonl")


def test_a_plan_counts_the_calls_that_a_judge_then_gets(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    prompts = load(chain.folder("sample") / "prompts.parquet", Example)[:6]
    rows = [{"messages": p.messages, "completions": ["first", "second", "third"]} for p in prompts]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with running(Model(judging(lambda texts: "A"))) as server:
        judge = f"{{base_url: '{server.url}', model: judge, price: {{input: 2, output: 8}}}}"
        line = (
            "sample=file",
            "sample.own_prompts=false",
            f"sample.file={tmp_path / 'mine.jsonl'}",
            "label=judge",
            f"label.endpoints=[{judge}]",
        )

        def planned() -> list[expected_calls.ExpectedCalls]:
            store, planned_nodes = Store(chain.root), nodes(chain.root, *line)
            plan.plan_nodes(planned_nodes, store).show()
            return expected_calls.endpoint_calls(
                planned_nodes["label"], store, cost.RunHistory(store)
            )

        [before] = planned()
        assert math.isnan(before.calls), "the file is not read yet"
        build(chain.root, "stage=sample", *line)
        [calls] = planned()
        build(chain.root, "stage=label", *line)
        metrics = chain.manifest("label", *line)["metrics"]["calls"][calls.key]
        assert calls.calls == metrics["made"] == len(server.requests)
        assert calls.output == 64 * calls.calls > metrics["output_tokens"]
        assert calls.money == pytest.approx((2 * calls.input + 8 * calls.output) / 1e6)
        characters = sum(
            len(m["content"]) for request in server.requests for m in request["messages"]
        )
        assert calls.input == pytest.approx(characters / CHARACTERS, rel=0.25)
        rows_shown = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["label", calls.key, "judge", f"{calls.calls:,.0f}"] in [
            line[:4] for line in rows_shown
        ]
        assert planned() == [], "finished nodes expect no calls"
        line = line[3:]  # candidates of the policy, many of them copies
        [calls], before = planned(), len(server.requests)
        build(chain.root, "stage=label", *line)
        assert calls.calls - 1 == len(server.requests) - before, "the reply to the probe is cached"


def test_a_plan_counts_the_candidates_of_an_endpoint(chain: Chain) -> None:
    line = (
        "sample=openai",
        "sample.endpoint.base_url=http://127.0.0.1:1/v1",
        "sample.endpoint.model=writer",
    )
    store, planned = Store(chain.root), nodes(chain.root, *line, "rounds=2", "sample.prompts=20")
    for name in ("sample", "sample_1"):
        [calls] = expected_calls.endpoint_calls(planned[name], store, cost.RunHistory(store))
        block = planned[name].config
        assert (calls.key, calls.calls, calls.money) == (
            "sample.endpoint",
            20 * block.candidates_per_prompt,
            None,
        )
        assert calls.output == block.max_new_tokens * calls.calls
    assert expected_calls.endpoint_calls(planned["label"], store, cost.RunHistory(store)) == [], (
        "the verifier makes no calls"
    )


def of_words(count: int) -> str:
    return " ".join(["river"] * count)


def planned_warnings(root: Path, *overrides: str) -> list[str]:
    return plan.warnings_on_lengths(nodes(root, *overrides), Store(root))


def test_a_plan_says_which_demonstrations_are_too_long(chain: Chain, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "completion": of_words(10 * i)} for i in range(1, 11)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    line = (f"data.sources=[{{path: {file}, splits: {{sft: 1.0}}}}]", "sft.max_dropped=1.0")
    [warning] = planned_warnings(chain.root, *line, "sft.max_length=100")
    build(chain.root, "stage=sft", *line, "sft.max_length=100")
    dropped = chain.manifest("sft", *line, "sft.max_length=100")["metrics"]["rows_dropped"]
    count = dropped["longer than sft.max_length=100 tokens"]
    assert 0 < count < 10
    assert warning.startswith(f"data.sources[0].path={file}: {count} of 10 rows are longer than")
    assert not planned_warnings(chain.root, *line, "sft.max_length=1024")


def test_a_plan_says_which_preferences_are_too_long(chain: Chain, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}", "chosen": "Short.", "rejected": of_words(2 * i)}
        for i in range(1, 41)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    line = (
        "label=dataset",
        f"label.path={file}",
        "dpo.max_dropped=1.0",
        "pairs.validation_fraction=0",
    )
    [warning] = planned_warnings(chain.root, *line, "dpo.max_length=100")
    build(chain.root, "stage=dpo", *line, "dpo.max_length=100")
    dropped = chain.manifest("dpo", *line, "dpo.max_length=100")["metrics"]["pairs_dropped"]
    count = dropped["longer than dpo.max_length=100 tokens"]
    assert 0 < count < 40
    assert warning.startswith(f"label.path={file}: {count} of 40 rows are longer than")
