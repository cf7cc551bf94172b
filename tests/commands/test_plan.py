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
from stages.commands.planning.comparable_nodes import Kind, Ran, seconds_of
from stages.commands.planning.tokens import CHARACTERS
from stages.config.installation import ROOT
from stages.hardware import machine
from stages.store.records import Example, load
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store
from tests.endpoints.servers import Model, running
from tests.helpers import TINY, Chain, build, inside, nodes, refused
from tests.labelers.judging import judging

KIND = Kind("sft", "bf16", "none", 1e8, False, True, "2 x this", 1)


def cost_of(root: Path, name: str, *overrides: str, others: tuple[Path, ...] = ()) -> cost.Cost:
    store, planned = Store(root), nodes(root, *overrides)
    return cost.expected(planned[name], planned, store, cost.RunHistory(store, *map(Store, others)))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Have a manifest say something else of how its node came about."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def ran(tokens: float, seconds: float) -> Ran:
    return Ran(KIND, tokens, tokens, seconds)


def test_work_beside_a_node_and_a_kill_do_not_make_the_next_one_slower() -> None:
    assert seconds_of(200, [ran(100, seconds) for seconds in (11, 50, 13)]) == pytest.approx(22)


def test_an_early_node_ran_other_code() -> None:
    assert seconds_of(100, [ran(100, seconds) for seconds in (1, 20, 21, 22, 23, 24)]) == pytest.approx(20)


@pytest.mark.parametrize(("few", "many"), [(1e4, 3e4), (3e4, 1e4)])
def test_two_sizes_separate_fixed_seconds_from_those_per_token(few: float, many: float) -> None:
    measured = [ran(tokens, 40 + tokens / 1000) for tokens in (few, many)]
    assert seconds_of(1e5, [*measured, ran(2e4, 3000)]) == pytest.approx(140)


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


def test_plan_expects_of_a_stage_what_it_took_with_other_settings(chain: Chain) -> None:
    for name, other in (("sft", "sft.seed=7"), ("sample", "sample.seed=7")):
        spent, found = chain.manifest(name), cost_of(chain.root, name, other)
        assert found.seconds == pytest.approx(spent["wall_seconds"], rel=0.01)
        assert found.tokens == spent["metrics"]["tokens"]


def test_twice_the_tokens_take_twice_as_long(chain: Chain) -> None:
    spent, found = (
        chain.manifest("sft"),
        cost_of(chain.root, "sft", f"sft.epochs={2 * nodes(chain.root)['sft'].config.epochs}"),
    )
    assert found.tokens == 2 * spent["metrics"]["tokens"]
    assert found.seconds == pytest.approx(2 * spent["wall_seconds"], rel=0.01)


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
    once, half = chain.manifest("sample")["metrics"]["tokens"], cost_of(chain.root, "sample_1", "rounds=2")
    assert half.tokens == pytest.approx(once / 2, abs=1)
    few = cost_of(chain.root, "sample", "sample.prompts=12")
    assert few.tokens == pytest.approx(once / 4, abs=1), "of 48"
    pairs = chain.manifest("dpo")["metrics"]["tokens"]
    assert cost_of(chain.root, "dpo", "sample.prompts=12").tokens == pytest.approx(pairs / 4, rel=0.5)


def test_a_model_that_is_not_trained_takes_no_time_of_one_that_was(chain: Chain) -> None:
    assert unmeasured(cost_of(chain.root, "sft", "sft=none"))


def test_a_stage_that_never_ran_is_not_measured(chain: Chain) -> None:
    """SFT on the same model says nothing of DPO."""
    shutil.rmtree(chain.root / "dpo")
    assert unmeasured(cost_of(chain.root, "dpo"))


def test_plan_takes_no_other_machines_time(chain: Chain) -> None:
    for folder, _ in Store(chain.root).manifests():
        edit(folder, lambda manifest: manifest.update(processor="64 x another"))
    assert unmeasured(cost_of(chain.root, "sft", "sft.seed=7"))


def test_a_new_store_profits_from_what_ran_for_another(chain: Chain, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    assert unmeasured(cost_of(fresh, "sft"))
    found, spent = cost_of(fresh, "sft", others=(chain.root,)), chain.manifest("sft")
    assert found.seconds == pytest.approx(spent["wall_seconds"], rel=0.5), "its rows are not counted yet"


def test_plan_does_not_know_the_rows_of_files_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')
    found = cost_of(tmp_path / "outputs", "sft", "data=file", f"data.sources=[{{path: {file}}}]")
    assert found.tokens is None and math.isnan(found.seconds)


def test_the_total_names_the_nodes_it_leaves_out(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(OUTPUTS, str(tmp_path / "elsewhere"))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')

    def total(*overrides: str, root: Path = built) -> tuple[float | None, list[str]]:
        """Return the minutes, and the nodes without a time."""
        plan.show(nodes(root, *overrides), Store(root))
        words = capsys.readouterr().out.split("To build: ")[1].split()
        minutes = float(words[words.index("min,") - 1]) if "min," in words else None
        names = words[words.index("yet") + 2 :] if "yet" in words else []
        return minutes, [name.strip(",.") for name in names]

    fresh = tmp_path / "fresh"
    assert total(root=fresh) == (None, list(nodes(fresh)))
    monkeypatch.setenv(OUTPUTS, str(built))
    minutes, names = total(root=fresh)
    assert minutes is not None and names == []
    judge = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:1', model: x}]"
    for labeler in (("label=judge", judge), ("label=human",)):  # a verifier's time here is not the time of others
        assert "label" in total(*labeler)[1]
    read = total("data=file", f"data.sources=[{{path: {file}, splits: {{sft: 0.5, preference: 0.5}}}}]")
    assert {"sft", "sample", "dpo"} <= set(read[1])


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
    line = (*TINY, f"outputs={tmp_path}", *untested, "pairs.validation_fraction=0")
    ran = inside(*line, "stage=plan")
    assert ran.returncode == 0, ran.stderr
    told = " ".join(ran.stdout.split())
    assert f"Not planned: answer, versus, eval, report. {refused(*line)}" in told
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

        def planned() -> list[expected_calls.ExpectedCalls]:
            store, found = Store(chain.root), nodes(chain.root, *line)
            plan.show(found, store)
            return expected_calls.expected(found["label"], store, cost.RunHistory(store))

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
        [asked] = expected_calls.expected(found[name], store, cost.RunHistory(store))
        block = found[name].config
        assert (asked.key, asked.calls, asked.money) == ("sample.endpoint", 20 * block.candidates_per_prompt, None)
        assert asked.output == block.max_new_tokens * asked.calls
    assert expected_calls.expected(found["label"], store, cost.RunHistory(store)) == [], "the verifier asks nobody"
