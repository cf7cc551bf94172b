"""The times, counts and changes that a plan prints."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.commands import plan
from stages.commands.plan_result import UNMEASURED, PlannedCalls, PlannedNode, PlanResult
from stages.config.extras import EXTRAS
from stages.config.schema import RunLimits
from stages.extras.forecast import first_guess
from stages.extras.forecast.expected_calls import CHARACTERS_PER_TOKEN, planned_calls
from stages.extras.forecast.forecast import RunForecast
from stages.hardware import machine
from stages.store.records import Example, load
from stages.store.store import Store
from tests.endpoints.servers import Model, running
from tests.helpers import ROOT, TINY, Chain, build, nodes, settings
from tests.labelers.judging import judging
from tests.support_rows import support_rows


def forecast_plan(root: Path, *overrides: str) -> PlanResult:
    """Return the plan with its forecast."""
    graph = nodes(root, *overrides)
    store = Store(root)
    return plan.plan_nodes(graph, store, RunForecast(graph, store))


def planned(root: Path, name: str, *overrides: str) -> PlannedNode:
    """Return a node of a plan."""
    result = forecast_plan(root, *overrides)
    return next(node for node in result.nodes if node.name == name)


def test_time_is_that_of_the_nearest_earlier_node_on_this_machine(chain: Chain) -> None:
    build(chain.root, "stage=sft", "sft.seed=7", "sft.epochs=1")
    for line, nearest in (
        (("sft.seed=8",), ()),
        (("sft.seed=8", "sft.epochs=1"), ("sft.seed=7", "sft.epochs=1")),
    ):
        node = planned(chain.root, "sft", *line)
        assert node.seconds == chain.manifest("sft", *nearest)["wall_seconds"]
        assert len(node.changes) == 1, "the seed"
    for other in ("data.tasks.sft=200", "model.random_init.hidden_size=128", "data.seed=7"):
        assert planned(chain.root, "sft", other).guessed, other
    assert not planned(chain.root, "sft", "sft.seed=8").guessed
    shutil.rmtree(chain.root / "dpo")
    never = planned(chain.root, "dpo")
    assert never.guessed and never.seconds > 0 and never.memory > 0
    assert never.changes == ["no earlier node to compare with"]
    for folder, manifest in Store(chain.root).manifests():
        assert manifest["processor"] == machine.processor_name(False)
        (folder / "manifest.json").write_text(json.dumps(manifest | {"processor": "another"}))
    assert planned(chain.root, "sft", "sft.seed=7").guessed


@pytest.mark.extended
def test_the_first_plan_of_an_empty_store_guesses_every_node_and_loads_no_torch(
    tmp_path: Path,
) -> None:
    result = forecast_plan(tmp_path)
    assert all(node.guessed and 0 < node.seconds < 3600 for node in result.nodes)
    [sentence] = result.sentences
    minutes = sum(node.seconds for node in result.nodes) / 60
    assert f"{minutes:.1f} min" in sentence
    assert not any(f"{node.name}," in sentence for node in result.nodes)
    code = (
        "import sys; from pathlib import Path; "
        "from tests.extras.forecast.test_forecast import forecast_plan; "
        f"forecast_plan(Path({str(tmp_path)!r})); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.extended
def test_a_guess_grows_with_the_work_and_a_rows_file_is_counted(tmp_path: Path) -> None:
    def write(count: int) -> tuple[str, str]:
        rows = [row | {"prompt": row["customer_message"]} for row in support_rows(count)]
        file = tmp_path / f"{count}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        return "label=dataset", f"label.path={file}"

    few, many = (planned(tmp_path, "dpo", *write(count)) for count in (100, 400))
    twice = planned(tmp_path, "dpo", *write(100), "dpo.epochs=8")
    epochs = settings(*TINY).dpo.epochs
    started = first_guess.SECONDS_OF_A_START
    assert (many.seconds - started) / (few.seconds - started) == pytest.approx(4, rel=0.05)
    assert (twice.seconds - started) / (few.seconds - started) == pytest.approx(8 / epochs)


def test_memory_is_that_of_the_rows_that_a_file_has(tmp_path: Path) -> None:
    def memory(answer: str, *overrides: str) -> float:
        rows = [{"prompt": f"q {i}", "chosen": answer, "rejected": "no"} for i in range(300)]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        wide = ("model.random_init.hidden_size=256", "model.random_init.vocab_size=8192")
        line = ("label=dataset", f"label.path={file}", *wide, *overrides)
        return planned(tmp_path, "dpo", *line).memory

    short = memory("yes it is")
    assert short < memory("yes it is " * 500, "dpo.max_length=2048")
    assert short == memory("yes it is", "dpo.max_length=2048"), "no row is as long"


def test_the_memory_of_a_finished_node_is_what_was_measured(built: Path) -> None:
    base = planned(built, "base")
    assert base.state == "cached" and base.processor == "RAM"
    assert base.memory == Store(built).find(nodes(built)["base"])["peak_memory"]


def test_the_total_names_the_nodes_it_leaves_out(built: Path, tmp_path: Path) -> None:
    def left_out(*overrides: str, root: Path = built) -> list[str]:
        """Return the nodes without a time."""
        sentence = forecast_plan(root, *overrides).sentences[0]
        names = sentence.partition(f"{UNMEASURED.capitalize()}: ")[2]
        return names.rstrip(".").split(", ")

    assert left_out(root=tmp_path / "fresh") == [""], "they are guessed"
    assert left_out("dpo.beta=0.3") == [""]
    judge = "label.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"
    assert left_out("label=judge", judge) == ["label"], "it waits for servers"
    [calls] = forecast_plan(built, "label=judge", judge).calls
    assert (calls.node, calls.key) == ("label", "label.endpoints[0]")
    if "human" in EXTRAS:
        assert left_out("label=human") == ["label"], "it waits for people"


def test_a_plan_names_the_limits_that_it_exceeds(tmp_path: Path) -> None:
    node = PlannedNode("sft", "sft", "a" * 12, "to build", [], math.nan, "RAM", 600.0)
    calls = PlannedCalls("label", "label.endpoints[0]", "m", 100, 1e4, 1e4, 7.5)
    planned = PlanResult([node], [calls], [], None)
    limit_sentences = RunForecast({}, Store(tmp_path)).limit_sentences
    assert limit_sentences(RunLimits(minutes=11, money=8), planned) == []
    minutes, money = limit_sentences(RunLimits(minutes=9, money=7), planned)
    assert minutes.startswith("limits.minutes=9: ") and "10.0 min" in minutes
    assert money.startswith("limits.money=7: ") and "7.50" in money


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

        def asked() -> list[PlannedCalls]:
            result = forecast_plan(chain.root, *line)
            result.show()
            return [calls for calls in result.calls if calls.node == "label"]

        [before] = asked()
        assert math.isnan(before.calls), "the file is not read yet"
        build(chain.root, "stage=sample", *line)
        [calls] = asked()
        build(chain.root, "stage=label", *line)
        metrics = chain.manifest("label", *line)["metrics"]["calls"][calls.key]
        assert calls.calls == metrics["made"] == len(server.requests)
        assert calls.output_tokens == 64 * calls.calls > metrics["output_tokens"]
        cost = (2 * calls.input_tokens + 8 * calls.output_tokens) / 1e6
        assert calls.money == pytest.approx(cost)
        characters = sum(
            len(m["content"]) for request in server.requests for m in request["messages"]
        )
        assert calls.input_tokens == pytest.approx(characters / CHARACTERS_PER_TOKEN, rel=0.25)
        assert f"{calls.key}  judge" in capsys.readouterr().out
        assert asked() == [], "finished nodes expect no calls"
        line = line[3:]  # candidates of the policy, many of them copies
        [calls] = asked()
        earlier = len(server.requests)
        build(chain.root, "stage=label", *line)
        assert calls.calls - 1 == len(server.requests) - earlier, "the reply to the probe is cached"


def test_a_plan_counts_the_candidates_of_an_endpoint(chain: Chain) -> None:
    line = (
        "sample=openai",
        "sample.endpoint.base_url=http://127.0.0.1:1/v1",
        "sample.endpoint.model=writer",
    )
    store = Store(chain.root)
    graph = nodes(chain.root, *line, "rounds=2", "sample.prompts=20")
    for name in ("sample", "sample_1"):
        [calls] = planned_calls(name, graph[name], store)
        block = graph[name].config
        expected = 20 * block.candidates_per_prompt
        assert (calls.key, calls.calls, calls.money) == ("sample.endpoint", expected, None)
        assert calls.output_tokens == block.max_new_tokens * calls.calls
    assert planned_calls("label", graph["label"], store) == [], "the verifier makes no calls"
