"""What a plan expects, and how it names what changed."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.commands import plan
from stages.commands.planning import calls, cost
from stages.commands.planning.tokens import CHARACTERS
from stages.config.schema import OUTPUTS, ROOT
from stages.hardware import machine
from stages.hardware.speed import COMPARABLE, Known, Ran, Task, expected
from stages.pipeline.graph import graph
from stages.store.records import Example, load
from stages.store.store import Store
from tests.endpoints.servers import Model, running
from tests.helpers import TINY, Chain, build, inside, nodes, refused, settings
from tests.labelers.judging import judging

TASK = Task("sft", "bf16", "none", "a", 1e8, 1e5, "2 x this", 2, on_gpu=False)


def cost_of(root: Path, name: str, *overrides: str, others: tuple[Path, ...] = ()) -> cost.Cost:
    store, planned = Store(root), nodes(root, *overrides)
    return cost.expected(planned[name], planned, store, cost.Past(store, *map(Store, others)))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Have a manifest say something else of how its node came about."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def of(task: Task, passes: float = TASK.passes, slowness: float = 1.0, **given: Any) -> Ran:
    """Such a task, with so many passes, as it ran."""
    ran = replace(task, passes=passes, **given)
    return Ran(ran, slowness * ran.guess)


def test_a_guess_is_said_to_be_one() -> None:
    assert expected(TASK, []) == (TASK.guess, Known.guessed)
    elsewhere = of(TASK, slowness=3, processor="8 x that")
    much_smaller = of(TASK, slowness=3, parameters=TASK.parameters / COMPARABLE / 2)
    assert expected(TASK, [elsewhere, much_smaller]) == (TASK.guess, Known.guessed)


@pytest.mark.parametrize(
    ("nearer", "farther"),
    [
        ({"precision": "fp32"}, {"stage": "sample"}),
        ({"stage": "dpo"}, {"precision": "fp32"}),
        ({"base": "b", "parameters": 2e8}, {"stage": "dpo"}),
        ({"base": "b"}, {"way": "lora"}),
        ({}, {"base": "b"}),
        ({}, {"processor": None}),
    ],
)
def test_what_is_more_alike_tells(nearer: dict[str, Any], farther: dict[str, Any]) -> None:
    ran = [of(TASK, slowness=2, **nearer), of(TASK, slowness=3, **farther)]
    for given in (ran, ran[::-1]):
        seconds, known = expected(TASK, given)
        assert seconds == pytest.approx(2 * TASK.guess)
        assert known is (Known.scaled if nearer else Known.measured)


def test_work_beside_a_node_and_a_kill_do_not_make_the_next_one_slower() -> None:
    seconds, _ = expected(TASK, [of(TASK, slowness=s) for s in (1.1, 5.0, 1.3)])
    assert seconds == pytest.approx(1.1 * TASK.guess)


def test_an_early_node_ran_other_code() -> None:
    seconds, _ = expected(TASK, [of(TASK, slowness=s) for s in (0.1, 2.0, 2.1, 2.2, 2.3, 2.4)])
    assert seconds == pytest.approx(2 * TASK.guess)


def test_two_sizes_tell_what_is_fixed_from_what_is_per_token() -> None:
    def ran(passes: float) -> Ran:
        return Ran(replace(TASK, passes=passes), 40 + passes / 1000)

    for few, many in ((1e4, 3e4), (3e4, 1e4)):
        seconds, known = expected(TASK, [ran(few), ran(many), of(TASK, passes=2e4, slowness=50)])
        assert seconds == pytest.approx(40 + TASK.passes / 1000)
        assert known is Known.measured


def test_a_manifest_says_what_its_node_ran_on(chain: Chain) -> None:
    found = {manifest["processor"] for _, manifest in Store(chain.root).manifests()}
    assert found == {machine.processor(False)}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        name = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        assert name.partition(":")[2].strip() in found.pop()


def test_plan_counts_the_pairs_that_there_are(chain: Chain) -> None:
    """`pairs=all` makes more of them; once they are there, DPO is expected to go through as many more tokens."""
    build(chain.root, "stage=pairs", "pairs=all")
    before, after = (chain.manifest("pairs", *more)["metrics"] for more in ((), ("pairs=all",)))
    wanted = (after["pairs"] - after["held_out"]) / (before["pairs"] - before["held_out"])
    assert wanted > 1.1
    spent, found = chain.manifest("dpo"), cost_of(chain.root, "dpo", "pairs=all")
    assert found.tokens == pytest.approx(spent["metrics"]["tokens"] * wanted, rel=0.1)
    assert found.seconds > spent["wall_seconds"]
    assert found.known is Known.measured


def test_plan_expects_of_a_stage_what_it_took_with_other_settings(chain: Chain) -> None:
    for name, other in (("sft", "sft.seed=7"), ("sample", "sample.seed=7")):
        spent, found = chain.manifest(name), cost_of(chain.root, name, other)
        assert found.seconds == pytest.approx(spent["wall_seconds"], rel=0.01)
        assert found.tokens == spent["metrics"]["tokens"]
        assert found.known is Known.measured


def test_another_sampler_or_adapter_has_another_speed(chain: Chain) -> None:
    for name, other in (
        ("sample", "sample=generate"),
        ("sft", "sft.adapter=lora"),
        ("reference", "dpo.forward=padded"),
    ):
        assert cost_of(chain.root, name, other).known is Known.scaled


def test_plan_shares_the_prompts_among_rounds(chain: Chain) -> None:
    once, half = chain.manifest("sample")["metrics"]["tokens"], cost_of(chain.root, "sample_1", "rounds=2")
    assert half.tokens == pytest.approx(once / 2, abs=1)
    few = cost_of(chain.root, "sample", "sample.prompts=12")
    assert few.tokens == pytest.approx(once / 4, abs=1), "of 48"
    pairs = chain.manifest("dpo")["metrics"]["tokens"]
    assert cost_of(chain.root, "dpo", "sample.prompts=12").tokens == pytest.approx(pairs / 4, rel=0.5)


def test_a_model_that_is_not_trained_takes_no_time_of_one_that_was(chain: Chain) -> None:
    assert cost_of(chain.root, "sft", "sft=none").known is Known.guessed


def test_plan_expects_of_dpo_the_speed_that_sft_had(chain: Chain) -> None:
    """Of another stage on the same model, before there is a node of its own."""
    for gone in ("dpo", "reference"):
        shutil.rmtree(chain.root / gone)
    before = cost_of(chain.root, "dpo")
    assert before.known is Known.scaled
    edit(chain.folder("sft"), lambda manifest: manifest.update(wall_seconds=3 * manifest["wall_seconds"]))
    assert cost_of(chain.root, "dpo").seconds == pytest.approx(3 * before.seconds)


def test_plan_takes_no_other_machines_time(chain: Chain) -> None:
    here = cost_of(chain.root, "sft", "sft.seed=7")
    for folder, _ in Store(chain.root).manifests():
        edit(folder, lambda manifest: manifest.update(processor="64 x another"))
    there = cost_of(chain.root, "sft", "sft.seed=7")
    assert there.tokens == here.tokens
    assert there.known is Known.guessed


def test_a_new_store_profits_from_what_ran_for_another(chain: Chain, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    assert cost_of(fresh, "sft").known is Known.guessed
    found, spent = cost_of(fresh, "sft", others=(chain.root,)), chain.manifest("sft")
    assert found.seconds == pytest.approx(spent["wall_seconds"], rel=0.5)
    assert found.known is Known.scaled, "how long the rows are that this store will have is not known"


def test_the_plan_says_how_its_times_are_known(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(root: Path) -> tuple[dict[str, str], str]:
        plan.show(nodes(root, "sft.seed=7"), Store(root))
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line.split()[-2] for line in lines if line.endswith(" s")}, lines[-1]

    monkeypatch.setenv(OUTPUTS, str(tmp_path / "elsewhere"))
    times, legend = told(chain.root)
    assert float(times["sft"]) >= 0, "as it took here"
    assert times["dpo"].startswith("~"), "its pairs are still to be made"
    assert "as this stage took here" in legend and "~ scaled" in legend and "guess" not in legend
    times, legend = told(tmp_path / "fresh")
    assert times["sft"].startswith("?")
    assert "? a guess" in legend
    monkeypatch.setenv(OUTPUTS, str(chain.root))
    times, _ = told(tmp_path / "fresh")
    assert times["sft"].startswith("~")


def test_plan_guesses_of_the_demo_about_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/results.md has it, on two cores in bf16."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    store = Store(tmp_path)
    cfg = replace(settings("precision=bf16"), outputs=str(tmp_path))
    planned = graph(cfg, tmp_path / "cache" / "digests.json")
    costs = {name: cost.expected(node, planned, store, cost.Past(store)) for name, node in planned.items()}
    took = {"base": 18, "sample_base": 86, "sft": 222, "sample": 81, "reference": 18, "dpo": 68, "eval": 11}
    for name, seconds in took.items():
        assert seconds / 1.5 < costs[name].seconds < seconds * 1.5, name
    answering = sum(costs[f"answer_{role}"].seconds for role in ("base", "sft", "policy"))
    assert 115 / 1.5 < answering < 115 * 1.5
    assert {found.known for found in costs.values()} == {Known.guessed}


def test_plan_does_not_know_the_rows_of_files_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')
    found = cost_of(tmp_path / "outputs", "sft", "data=file", f"data.sources=[{{path: {file}}}]")
    assert found.tokens is None and math.isnan(found.seconds)


def test_the_total_says_which_nodes_it_leaves_out(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')

    def total(*overrides: str, root: Path = tmp_path / "outputs") -> str:
        plan.show(nodes(root, *overrides), Store(root))
        return " ".join(next(part for part in capsys.readouterr().out.split("To build: ")[1:]).split())

    assert re.match(r"\d+\.\d min expected\. Times", total())
    judge = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"
    paid = total("label=judge", judge)
    assert re.match(r"at least \d+\.\d min, as the time of 1 nodes is not known \(label\)\. Times", paid)
    for labeler in (("label=judge", judge), ("label=human",)):  # whose pace a verifier that ran here does not tell
        assert "the time of 1 nodes is not known (label)" in total(*labeler, root=built)
    read = total("data=file", f"data.sources=[{{path: {file}, splits: {{sft: 0.5, preference: 0.5}}}}]")
    assert "the time of 8 nodes is not known (sft, sample, reference, dpo, answer_base" in read


def test_a_plan_says_how_long_finished_nodes_are_hashed(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(chain.folder("sample"))
    shutil.rmtree(chain.folder("label"))
    read = [entry["bytes"] for name in ("sft", "data") for entry in chain.manifest(name)["files"].values()]
    monkeypatch.setattr(plan, "HASHED_PER_SECOND", sum(read) / 60)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    build(chain.root, "stage=plan")
    assert "hashed first: 30 s" in capsys.readouterr().out


def test_what_a_run_refuses_to_evaluate_is_not_planned(tmp_path: Path) -> None:
    untested = [f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks")]
    line = (*TINY, f"outputs={tmp_path}", *untested)
    ran = inside(*line, "stage=plan")
    assert ran.returncode == 0, ran.stderr
    told = " ".join(ran.stdout.split())
    assert f"Not planned: answer, eval, report. {refused(*line)}" in told
    assert {line.split()[0] for line in ran.stdout.splitlines() if "to build" in line} == {
        *("base", "data", "sft", "sample", "label", "pairs", "reference", "dpo")
    }


def test_plan_names_files_and_says_where_only_the_content_differs(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.jsonl"
    toys = (ROOT / "stages/tasks/toy_preferences.jsonl").read_text()

    def told(content: str, name: str = "mine.jsonl") -> str:
        (tmp_path / name).write_text(content)
        entered = ("label=dataset", f"label.path={tmp_path / name}")
        planned = nodes(chain.root, *entered)
        plan.show(planned, Store(chain.root))
        return " ".join(capsys.readouterr().out.split())

    assert "path – -> mine.jsonl" in told(toys)
    build(chain.root, "stage=label", "label=dataset", f"label.path={mine}")
    assert "path mine.jsonl: its content" in told(toys.replace("a", "b", 1))
    assert "path mine.jsonl -> other.jsonl" in told(toys + "\n", "other.jsonl")


def test_a_plan_counts_the_calls_that_a_judge_then_gets(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    prompts = load(chain.folder("sample") / "prompts.parquet", Example)[:6]
    rows = [{"messages": p.messages, "completions": ["first", "second", "third"]} for p in prompts]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with running(Model(judging(lambda texts: "A"))) as server:
        judge = f"{{base_url: '{server.url}', model: judge, price: {{input: 2, output: 8}}}}"
        line = (f"sample.file={tmp_path / 'mine.jsonl'}", "label=judge", f"label.judge.endpoints=[{judge}]")

        def planned() -> list[calls.Asked]:
            store, found = Store(chain.root), nodes(chain.root, *line)
            plan.show(found, store)
            return calls.expected(found["label"], found, store, cost.Past(store))

        [before] = planned()
        assert math.isnan(before.calls), "nobody has read the file"
        build(chain.root, "stage=sample", *line)
        [asked] = planned()
        build(chain.root, "stage=label", *line)
        told = chain.manifest("label", *line)["metrics"]["calls"][asked.key]
        assert asked.calls == told["made"] == len(server.asked)
        assert asked.output == 64 * asked.calls > told["output_tokens"]
        assert asked.money == pytest.approx((2 * asked.input + 8 * asked.output) / 1e6)
        characters = sum(len(m["content"]) for request in server.asked for m in request["messages"])
        assert asked.input == pytest.approx(characters / CHARACTERS, rel=0.25)
        shown = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["label", asked.key, "judge", f"{asked.calls:,.0f}"] in [line[:4] for line in shown]
        assert planned() == [], "what is there is not asked again"
        line = line[1:]  # the policy's own candidates, of which many are copies
        [asked], before = planned(), len(server.asked)
        build(chain.root, "stage=label", *line)
        assert asked.calls - 1 == len(server.asked) - before, "the probe is kept"


def test_a_plan_counts_the_candidates_of_an_endpoint(chain: Chain) -> None:
    line = ("sample=openai", "sample.endpoint.base_url=http://127.0.0.1:1/v1", "sample.endpoint.model=writer")
    store, found = Store(chain.root), nodes(chain.root, *line, "rounds=2", "sample.prompts=20")
    for name in ("sample", "sample_1"):
        [asked] = calls.expected(found[name], found, store, cost.Past(store))
        block = found[name].config
        assert (asked.key, asked.calls, asked.money) == ("sample.endpoint", 20 * block.candidates_per_prompt, None)
        assert asked.output == block.max_new_tokens * asked.calls
    assert calls.expected(found["label"], found, store, cost.Past(store)) == [], "the verifier asks nobody"
