"""The endpoint client: each question is asked once despite failures, within the budget, and the API key stays
secret."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config.blocks.endpoints import Budget, Endpoint, EndpointRuntime, Price
from stages.config.errors import LimitReached, UserError
from stages.config.installation import ROOT
from stages.endpoints import spending
from stages.endpoints.client import Client, Job, Question, run_jobs
from stages.endpoints.reply import NoReply, Reply, parse_reply
from stages.endpoints.spending import retry_after
from stages.store import json_log
from stages.store.allowance import Allowance
from stages.store.workspace import StageDir
from tests.endpoints.servers import FAULTS, Model, Proxy, Request, running
from tests.helpers import SECRET

pytest.importorskip("openai")
FAST = {"timeout": 30.0, "retries": 20, "backoff": 0.01}
IMPATIENT = {"timeout": 0.5}


def shout(request: Request) -> str:
    return str(request["messages"][-1]["content"]).upper()


def work(folder: Path, allowance: Allowance | None = None) -> StageDir:
    folder.mkdir(parents=True, exist_ok=True)
    calls = folder.parent / "calls"
    return StageDir(folder, lambda metrics, step: None, call_folder=calls, allowance=allowance)


def endpoint(url: str, **options: Any) -> Endpoint:
    runtime = EndpointRuntime(**FAST | options.pop("runtime", {}))
    return Endpoint(url, options.pop("model", "shouter"), runtime=runtime, **options)


def question(i: int, **options: Any) -> Question:
    return Question([{"role": "user", "content": f"question {i}"}], 16, 0.0, 0, **options)


def ask_all(client: Client, questions: Iterable[Question], out: StageDir) -> dict[str, str]:
    """Return the answer to each question, or the reason why it is missing."""

    return dict(run_jobs([client], (job_of(client, each) for each in questions), out))


def job_of(client: Client, question: Question) -> Job[tuple[str, str]]:
    async def ask() -> tuple[str, str]:
        try:
            return question.messages[0]["content"], (await client.ask(question)).text
        except NoReply as error:
            return question.messages[0]["content"], error.reason

    return ask


def client(url: str, out: StageDir, **options: Any) -> Client:
    return Client(endpoint(url, **options), "sample.endpoint", out)


@pytest.mark.extended
def test_every_answer_comes_and_none_is_wrong_whatever_fails_on_the_way(tmp_path: Path) -> None:
    expected = {f"question {i}": f"QUESTION {i}" for i in range(300)}
    with running(Model(shout)) as model, running(Proxy(model, 0.2, hang=1.0)) as proxy:
        out = work(tmp_path / "node")
        assert (
            ask_all(client(proxy.url, out, runtime=IMPATIENT), map(question, range(300)), out)
            == expected
        )
        assert set(proxy.failed) == set(FAULTS), "every fault has occurred"
        figures = out.endpoint_calls["sample.endpoint"]
        assert (
            figures["made"] == 300 + sum(figures["failed"].values()) >= 300 + proxy.failed.total()
        )
        before = len(model.requests)
        assert ask_all(client(proxy.url, out), map(question, range(300)), out) == expected
        assert len(model.requests) == before, "answered questions are not asked again"


def test_a_refused_request_is_missing_with_the_reason_of_the_server(tmp_path: Path) -> None:
    with running(Model(shout, status=400)) as model:
        model.refusal = "Unsupported parameter: 'max_tokens'"
        out = work(tmp_path / "node")
        [reason] = ask_all(client(model.url, out), [question(0)], out).values()
        assert reason.startswith("HTTP 400: ") and model.refusal in reason
        model.status = 402
        with pytest.raises(UserError, match=r"asks for payment \(HTTP 402"):
            ask_all(client(model.url, out), [question(0)], out)


def test_equal_questions_on_their_way_are_one_call(tmp_path: Path) -> None:
    with running(Model(shout, seconds=0.05)) as model:
        out = work(tmp_path / "node")
        assert ask_all(client(model.url, out), [question(0)] * 8, out) == {
            "question 0": "QUESTION 0"
        }
        assert len(model.requests) == 1 and out.endpoint_calls["sample.endpoint"]["kept"] == 0
        ask_all(client(model.url, out), [question(0)] * 3, out)
        assert len(model.requests) == 1 and out.endpoint_calls["sample.endpoint"]["kept"] == 1


def test_a_budget_of_calls_makes_so_many_calls_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with (
        running(Model(shout)) as model,
        running(Proxy(model, 0.2, 0.0, ("500", "malformed"))) as proxy,
    ):
        n_attempts = 0
        for calls in (7, 7, 19):
            out = work(tmp_path / "node")
            with pytest.raises(
                UserError, match=rf"^sample.endpoint.budget.calls={calls} allows no further call"
            ):
                ask_all(
                    client(proxy.url, out, budget=Budget(calls=calls)),
                    map(question, range(60)),
                    out,
                )
            n_attempts = len(model.requests) + proxy.failed["500"]
            assert n_attempts == calls, (
                "failed calls and calls of earlier attempts at the node count"
            )
        out = work(tmp_path / "node")
        assert len(ask_all(client(proxy.url, out), map(question, range(60)), out)) == 60
        assert len(model.requests) == 60 + proxy.failed["malformed"]


@pytest.mark.extended
@pytest.mark.parametrize(("name", "amount"), [("tokens", 900), ("money", 9e-4)])
def test_tokens_and_money_stop_before_the_call_that_could_be_too_much(
    name: str, amount: Any, tmp_path: Path
) -> None:
    with running(Model(shout)) as model:
        out = work(tmp_path / "node")
        asking = client(model.url, out, budget=Budget(**{name: amount}), price=Price(1.0, 1.0))
        with pytest.raises(UserError, match=rf"^sample.endpoint.budget.{name}=.*raise this limit"):
            ask_all(asking, map(question, range(400)), out)
        used = sum(len(r["messages"][0]["content"].split()) * 2 + 1 for r in model.requests)
        assert asking.spending.input + asking.spending.output == used, (
            "the server counts the same tokens"
        )
        assert 900 - sum(question(100).token_bounds({})) < used <= 900


def test_the_money_of_a_command_is_shared_by_its_endpoints_and_nodes(tmp_path: Path) -> None:
    price = Price(0.0, 1e6)  # one for each token of an answer
    allowance = Allowance(money=50)
    with running(Model(shout)) as one, running(Model(shout)) as other:
        first = work(tmp_path / "first", allowance)
        ask_all(client(one.url, first, price=price), map(question, range(6)), first)

        def ask_both(out: StageDir) -> None:
            clients = [client(model.url, out, price=price) for model in (one, other)]
            jobs = [job_of(clients[i % 2], question(i)) for i in range(100, 400)]
            list(run_jobs(clients, jobs, out))

        with pytest.raises(LimitReached, match=r"^limits\.money=50: ") as reached:
            ask_both(work(tmp_path / "second", allowance))
        spent = 3 * (len(one.requests) + len(other.requests))  # "QUESTION 7" and an end
        assert allowance.spent == spent
        assert 50 - 16 < spent <= 50
        key, _, money = reached.value.setting.partition("=")
        assert key == "limits.money" and float(money) >= 100
        later = Allowance(money=spent - 18)
        with pytest.raises(LimitReached):
            ask_both(work(tmp_path / "second", later))
        assert later.spent == spent - 18, "earlier attempts at an unfinished node count"
        assert 3 * (len(one.requests) + len(other.requests)) == spent


def test_a_call_may_wait_long_for_money_that_another_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge of slow answers looks thousands of times."""
    looks = 2 * sys.getrecursionlimit()
    monkeypatch.setattr(spending, "RECHECK", 0.0)
    price = Price(0.0, 1e6)
    account = spending.Spending(
        tmp_path / "spent.jsonl", Budget(), price, "label", Allowance(money=50)
    )

    async def first_call_ends_late() -> None:
        for _ in range(looks):
            await asyncio.sleep(0)
        account.settle((0, 40), (0, 1))

    async def both_calls() -> None:
        await account.reserve(0, 40)
        await asyncio.gather(first_call_ends_late(), account.reserve(0, 40))

    with account.opened():
        asyncio.run(both_calls())
        assert account.money == 41


def test_no_call_begins_when_the_time_is_up_and_those_on_their_way_are_kept(tmp_path: Path) -> None:
    with running(Model(shout, seconds=0.1)) as model:
        out = work(tmp_path / "node")
        asking = client(model.url, out)
        jobs = [job_of(asking, question(i)) for i in range(400)]
        with pytest.raises(LimitReached, match=r"^limits\.minutes=0\.005: "):
            list(run_jobs([asking], jobs, out, Allowance(minutes=0.005)))
        begun = len(model.requests)
        assert 0 < begun < 400
        again = client(model.url, out)
        with again.calls.opened():
            assert len(again.calls.places) == begun


SCRIPT = """
import sys
from pathlib import Path
from tests.endpoints.test_client import ask_all, client, question, work
out = work(Path(sys.argv[2]))
ask_all(client(sys.argv[1], out, runtime={"concurrency": 4}), map(question, range(80)), out)
"""


@pytest.mark.extended
def test_a_kill_loses_nothing_that_had_come_and_asks_nothing_of_it_again(tmp_path: Path) -> None:
    with running(Model(shout, seconds=0.02)) as model:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, model.url, str(tmp_path / "node")], cwd=ROOT
        )
        deadline = time.monotonic() + 120
        while len(model.requests) < 25 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.1)  # until the server's threads have answered the killed process
        (journal,) = (tmp_path / "calls").glob("*.jsonl")
        *lines, _ = journal.read_bytes().split(b"\n")  # the last one may be torn
        asked = [json.loads(line)["asked"]["request"]["messages"] for line in lines]
        stored = [messages[0]["content"] for messages in asked]
        assert 25 - 4 <= len(stored) == len(set(stored)) < 80
        before = len(model.requests)
        out = work(tmp_path / "node")
        asking = client(model.url, out)
        assert len(ask_all(asking, map(question, range(80)), out)) == 80
        asked_again = [r["messages"][0]["content"] for r in model.requests[before:]]
        assert sorted(asked_again) == sorted({f"question {i}" for i in range(80)} - set(stored))
        # Interrupted calls count as spent, even if the server has not received them.
        assert len(model.requests) <= asking.spending.calls <= len(model.requests) + 4


def test_a_line_that_cannot_be_read_is_set_aside_said_once_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Model(shout)) as model:
        out = work(tmp_path / "node")
        ask_all(client(model.url, out), map(question, range(6)), out)
        [journal] = (tmp_path / "calls").glob("*.jsonl")
        first, *lines = journal.read_bytes().splitlines(keepends=True)
        unreadable = journal.with_name(f"{journal.name}.unreadable")
        # a line without digest, as earlier versions wrote it
        before = first[: first.rindex(b', "digest"')] + b"}\n"
        turned = lines[0].replace(b"QUESTION", b"QUESTIOM")
        typed = json_log.sealed(json.loads(lines[1]) | {"answer": 7})
        # the last line is truncated, as after a kill
        wrong = [turned, typed, b"\xff\x00\n", b"[" * 10_000 + b"\n", lines[2][:-30]]
        journal.write_bytes(b"".join([before, lines[3], lines[4], *wrong]))
        for _ in range(2):
            expected = {f"question {i}": f"QUESTION {i}" for i in range(6)}
            assert ask_all(client(model.url, out), map(question, range(6)), out) == expected
        assert len(model.requests) == 6 + 3, "only the three damaged lines, once each"
        assert journal.read_bytes().startswith(before + lines[3] + lines[4])
        assert unreadable.read_bytes() == b"".join(wrong) + b"\n"
        warnings = [record for record in caplog.records if "cannot be read" in record.getMessage()]
        assert len(warnings) == 1 and "5 of 8 lines" in warnings[0].getMessage()


def test_a_flipped_bit_of_a_kept_answer_turns_no_answer(tmp_path: Path) -> None:
    with running(Model(shout)) as model:
        out = work(tmp_path / "node")
        ask_all(client(model.url, out), map(question, range(2)), out)
        [journal] = (tmp_path / "calls").glob("*.jsonl")
        content = journal.read_bytes()
        draw = random.Random(0)
        for _ in range(200):
            place = draw.randrange(8 * len(content))
            journal.write_bytes(flipped(content, place))
            calls = client(model.url, out).calls
            with calls.opened():
                answers = [parse_reply(str(calls.get(key))).text for key in calls.places]
            assert set(answers) <= {"QUESTION 0", "QUESTION 1"}, place


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", "of somebody else")
    with running(Model(shout)) as model:
        out = work(tmp_path / "node")
        ask_all(client(model.url, out, api_key_env="JUDGE_KEY"), [question(0)], out)
        ask_all(client(model.url, out, model="other"), [question(0)], out)
        assert model.keys == [f"Bearer {SECRET}", "Bearer none"], (
            "OPENAI_API_KEY is not sent to other servers"
        )
    with running(Model(shout, status=401)) as model:
        with pytest.raises(UserError) as error:
            ask_all(client(model.url, out, api_key_env="JUDGE_KEY"), map(question, range(9)), out)
        assert "refuses the key (HTTP 401" in str(error.value) and SECRET not in str(error.value)
        assert len(model.requests) <= 8, "only the calls that were running"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET not in file.read_text()
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="api_key_env=JUDGE_KEY: "):
        ask_all(client(model.url, out, api_key_env="JUDGE_KEY"), [question(1)], out)


def test_what_the_environment_holds_for_openai_goes_to_no_server_and_stays_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_variables = {
        "OPENAI_API_KEY": "key-of-theirs",
        "OPENAI_ORG_ID": "org-of-theirs",
        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer token-of-theirs\nX-Gateway: gateway-of-theirs",
    }
    for name, value in foreign_variables.items():
        monkeypatch.setenv(name, value)
    with running(Model(shout)) as model:
        out = work(tmp_path / "node")
        ask_all(client(model.url, out), [question(0)], out)
        ask_all(client(model.url, out, api_key_env="OPENAI_API_KEY"), [question(1)], out)
    assert model.keys == ["Bearer none", "Bearer key-of-theirs"], (
        "only the key in api_key_env is sent"
    )
    for headers in model.headers:
        others = [value for name, value in headers if name.lower() != "authorization"]
        assert "of-theirs" not in str(others)
    assert {name: os.environ[name] for name in foreign_variables} == foreign_variables


@pytest.mark.extended
def test_the_rate_limit_and_retry_after_are_respected(tmp_path: Path) -> None:
    with running(Model(shout)) as model:
        out = work(tmp_path / "node")
        began = time.monotonic()
        limited = client(model.url, out, runtime={"requests_per_minute": 1200})
        ask_all(limited, map(question, range(8)), out)
        assert time.monotonic() - began >= 7 * 0.05
    with running(Model(shout, status=402)) as model, pytest.raises(UserError, match="HTTP 402"):
        waiting = client(model.url, out, runtime={"requests_per_minute": 6, "concurrency": 4})
        ask_all(waiting, map(question, range(30, 34)), out)
    assert waiting.spending.calls == 1, "a call that waits its turn is not made after a refusal"
    with running(Model(shout, status=429)) as model, pytest.raises(UserError, match=r" 3600 s\. "):
        ask_all(client(model.url, out), [question(20)], out)
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({}, optional={"content": JSON, "refusal": JSON, "role": JSON})
CHOICE = st.fixed_dictionaries({}, optional={"message": MESSAGE | JSON, "finish_reason": JSON})
BODY = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(CHOICE | JSON, max_size=2) | JSON, "usage": JSON}
)


@pytest.mark.extended
@settings(max_examples=1000, deadline=None)
@given(st.one_of(st.text(), BODY.map(json.dumps), JSON.map(json.dumps)))
def test_any_body_is_a_reply_or_a_reason(body: str) -> None:
    try:
        reply = parse_reply(body)
    except NoReply as error:
        assert error.reason and error.retryable
        return
    message = json.loads(body)["choices"][0]["message"]
    assert isinstance(reply, Reply)
    assert reply.text in ("", message.get("refusal"), message.get("content"))
