"""Tests of `limits`: real commands stop at a limit, with what they have made, and further ones end as one alone would."""

import json
import shlex
from pathlib import Path

import pytest

from stages.config.errors import LimitReached
from stages.config.exit_codes import ExitCode
from stages.store.allowance import Allowance
from stages.store.store import Store
from stages.store.workspace import SCRATCH, read_samples
from tests.endpoints.servers import Model, running
from tests.helpers import TINY, Chain, build, inside, nodes, refused, slow_but
from tests.labelers.judging import greater, is_probe, judging
from tests.pipeline.test_resume import checkpoints, rows

AT_ONCE = "limits.minutes=0.00001"  # reached before the first step, shard or call, however fast
PREFERENCES = [
    {"prompt": f"Question {i}?", "chosen": "Yes, it is.", "rejected": "No"} for i in range(4)
]


def without(chain: Chain, name: str) -> Path:
    """Move a node out of the store, and return its new folder."""
    return chain.folder(name).rename(chain.root / f"kept-{name}")


def stopped(chain: Chain, *line: str) -> str:
    """Run a command that stops at a limit, and return its last line."""
    ran = inside(*TINY, *line, f"outputs={chain.root}")
    assert ran.returncode == ExitCode.stopped, ran.stderr
    last_line = ran.stderr.splitlines()[-1]
    assert last_line.startswith("stopped: limits.")
    return last_line


def way_out(line: str) -> list[str]:
    """Return the arguments of the command that a line tells to type."""
    return shlex.split(line.partition("python run.py ")[2])


@pytest.mark.extended
@pytest.mark.parametrize("name", slow_but(("sft", "dpo", "kto", "grpo", "reward"), "dpo"))
def test_a_training_stops_at_a_step_and_goes_on_to_the_same_weights(
    name: str, chain: Chain
) -> None:
    align = (f"align={name}",) if name in ("kto", "grpo") else ()
    line = (f"stage={name}", *align)
    build(chain.root, *line)
    store = Store(chain.root)
    node = nodes(chain.root, *line)[name]
    before = store.find(node)
    assert before is not None
    original = store.folder(node).rename(chain.root / "kept")
    scratch = store.partial(node) / SCRATCH

    last_line = stopped(chain, *line, AT_ONCE)
    assert f"in {name} at step 1 of {before['metrics']['steps']}" in last_line
    assert checkpoints(scratch) == [1], "saved, although save_steps and save_minutes are larger"
    [page] = [p for p in chain.root.glob("pages/*.html") if node.fingerprint in p.name]
    assert 'class="stopped"' in page.read_text() and 'class="failed"' not in page.read_text()

    again = inside(*way_out(last_line))
    assert again.returncode == ExitCode.stopped, again.stderr
    assert checkpoints(scratch) == [2], "each command makes at least one step"
    finished = inside(*TINY, *line, f"outputs={chain.root}", "limits.minutes=60")
    assert finished.returncode == ExitCode.done, finished.stderr
    after = store.find(node)
    assert after is not None
    assert after["digest"] == before["digest"]
    assert len(after["attempts"]) == 3
    assert "limits." not in after["command"]
    assert read_samples(store.folder(node)) == read_samples(original)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_go_on(chain: Chain) -> None:
    two = ("stage=sft", "launch=ddp", "launch.processes=2", "sft.evaluations=0")
    build(chain.root, *two)
    store = Store(chain.root)
    node = nodes(chain.root, *two)["sft"]
    before = store.find(node)
    assert before is not None
    store.folder(node).rename(chain.root / "kept")
    assert "in sft at step 1 of" in stopped(chain, *two, AT_ONCE)
    assert checkpoints(store.partial(node) / SCRATCH) == [1]
    build(chain.root, *two, "limits.minutes=60")
    after = store.find(node)
    assert after is not None
    assert after["digest"] == before["digest"]
    assert len(after["attempts"]) == 2


@pytest.mark.extended
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sampling_stops_behind_a_shard_and_goes_on_to_the_same_tokens(
    processes: int, chain: Chain
) -> None:
    original = without(chain, "sample")
    several = ("launch=ddp", f"launch.processes={processes}") if processes > 1 else ()
    line = ("stage=sample", "sample.runtime.shard_size=8", *several)
    assert "in sample after" in stopped(chain, *line, AT_ONCE)
    shards = Store(chain.root).partial(nodes(chain.root)["sample"]) / SCRATCH / "shards"
    assert 1 <= len(list(shards.glob("*.parquet"))) <= processes
    build(chain.root, *line)
    for resumed, undisturbed in zip(rows(chain.folder("sample")), rows(original), strict=True):
        assert resumed["token_ids"] == undisturbed["token_ids"]
    assert len(chain.manifest("sample")["attempts"]) == 2


@pytest.mark.extended
def test_a_command_stops_between_nodes_and_another_goes_on_from_there(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    ran = inside(*TINY, "stage=sft", f"outputs={tmp_path}", AT_ONCE, "--json")
    assert ran.returncode == ExitCode.stopped, ran.stderr
    assert chain.count() == {"data": 1}, "the first node is built, however late it is"
    reply = json.loads(ran.stdout)
    assert (reply["exit_code"], reply["result"]) == (ExitCode.stopped, None)
    assert "limits.minutes=1e-05: reached before base" in reply["error"]
    assert "limits.minutes=2e-05" in way_out(reply["error"])
    assert "limits.minutes=1e-05" not in way_out(reply["error"])


@pytest.mark.extended
def test_a_job_of_a_sweep_stops_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join(map(json.dumps, PREFERENCES)))
    line = (*TINY, "stage=pairs", "label=dataset", f"label.path={file}", f"outputs={tmp_path}")
    line += ("label.max_failed=0.1,0.2", "-m")
    ran = inside(*line, AT_ONCE)
    assert ran.returncode == ExitCode.stopped, ran.stderr
    head, *jobs = ran.stderr.splitlines()[-3:]
    assert head.startswith("stopped: 2 of 2 jobs")
    assert all("before pairs" in job and "limits.minutes=2e-05" in job for job in jobs)
    assert Chain(tmp_path).count() == {"label": 2}, "each job is a command of its own"
    further = inside(*way_out(jobs[0]))
    assert further.returncode == ExitCode.done, further.stderr
    assert Chain(tmp_path).count() == {"label": 2, "pairs": 2}
    assert not list(tmp_path.glob("multirun/*/*/*/error.txt"))


@pytest.mark.extended
def test_a_judge_stops_before_the_call_that_could_cost_too_much(chain: Chain) -> None:
    def last_letter(texts: dict[str, str]) -> str:
        return greater(texts["A"][-1:], texts["B"][-1:])

    with running(Model(judging(last_letter))) as model:
        one_call = "runtime: {concurrency: 1}, price: {input: 0, output: 1000000}"
        endpoint = f"{{base_url: '{model.url}', model: judge, {one_call}}}"
        line = ("stage=label", "label=judge", f"label.endpoints=[{endpoint}]")
        line += ("label.max_tokens=100",)

        def cost() -> int:
            return sum(len(model.says(request).split()) + 1 for request in model.requests)

        last_line = stopped(chain, *line, "limits.money=130")
        bounds = 100  # of the answer to the next question
        assert 130 - bounds < cost() <= 130
        call_count = len(model.requests)
        assert "limits.money=130: reached at label.endpoints[0]" in last_line

        assert stopped(chain, *line, "limits.money=130")
        assert len(model.requests) == call_count, "what earlier attempts at the node cost counts"
        again = inside(*way_out(last_line))
        assert len(model.requests) > call_count, again.stderr
        finished = inside(*TINY, *line, f"outputs={chain.root}", "limits.money=1e9")
        assert finished.returncode == ExitCode.done, finished.stderr
        questions = [json.dumps(request) for request in model.requests]
        assert len(questions) == len({*questions}), "no question is paid for twice"
        assert sum(map(is_probe, model.requests)) == 1
        calls = chain.manifest("label", *line)["metrics"]["calls"]["label.endpoints[0]"]
        assert calls["money"] == cost()


@pytest.mark.extended
def test_a_judge_makes_no_call_when_the_time_is_up(chain: Chain) -> None:
    with running(Model(judging(lambda texts: "A"))) as model:
        endpoint = f"{{base_url: '{model.url}', model: judge}}"
        line = ("stage=label", "label=judge", f"label.endpoints=[{endpoint}]")
        assert "at label.endpoints[0]" in stopped(chain, *line, AT_ONCE)
        assert not model.requests


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_limit_is_a_finite_number_above_zero(value: str) -> None:
    for key in ("limits.minutes", "limits.money"):
        assert refused(*TINY, f"{key}={value}").startswith(f"{key}=")


def test_a_limit_of_money_needs_the_price_of_every_endpoint() -> None:
    endpoint = "{base_url: 'http://127.0.0.1:9/v1', model: dear}"
    line = (*TINY, "stage=label", "label=judge", f"label.endpoints=[{endpoint}]", "limits.money=5")
    assert "Set label.endpoints[0].price=" in refused(*line)
    assert "label.endpoints[0].price" not in refused(
        *line, "prices={dear: {input: 1.0, output: 2.0}}", "upstream=require"
    )


def test_limits_are_in_no_fingerprint(chain: Chain) -> None:
    limited = nodes(chain.root, "limits.minutes=5", "limits.money=5")
    fingerprints = {name: node.fingerprint for name, node in limited.items()}
    assert fingerprints == {name: node.fingerprint for name, node in nodes(chain.root).items()}


@pytest.mark.extended
def test_a_command_waits_for_another_no_longer_than_its_minutes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    node = nodes(tmp_path)["data"]
    another = Store(tmp_path).claim(node, Allowance(minutes=1e-6))
    with store.claim(node), pytest.raises(LimitReached, match=f"while data {node.fingerprint}"):
        another.__enter__()
