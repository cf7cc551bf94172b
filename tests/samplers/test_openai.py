"""Candidates of another model over HTTP (`sample=openai`) in the pipeline. Each call is paid for once."""

import json
import shutil
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.store.records import Candidate, load
from tests.endpoints.servers import Model, Proxy, Request, running
from tests.helpers import SECRET, Chain, build, nodes

pytest.importorskip("openai")
COUNT = 96
FAST = (
    "sample.candidates_per_prompt=2",  # of 48 prompts
    "sample.endpoint.runtime.backoff=0.01",
    "sample.endpoint.runtime.retries=20",
)


def says(request: Request) -> str:
    return f"answer {request['seed'] % 7} to {request['messages'][-1]['content'][:20]}"


def asking(url: str, *overrides: str) -> tuple[str, ...]:
    return (
        "sample=openai",
        f"sample.endpoint.base_url={url}",
        "sample.endpoint.model=writer",
        *FAST,
        *overrides,
    )


def test_candidates_are_the_servers_and_a_rebuild_asks_nothing(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITER_KEY", SECRET)
    with (
        running(Model(says)) as model,
        running(Proxy(model, 0.2, 0.0, ("500", "429", "cut", "malformed"))) as proxy,
    ):
        line = asking(proxy.url, "sample.endpoint.api_key_env=WRITER_KEY")
        build(chain.root, "stage=sample", *line)
        candidates = load(chain.folder("sample", *line) / "candidates.parquet", Candidate)
        requests = {json.dumps(request, sort_keys=True) for request in model.requests}
        assert len(candidates) == len(requests) == COUNT, "every request has another seed"
        assert {c.text for c in candidates} == {says(request) for request in model.requests}
        assert {(c.policy, c.sampler, c.token_ids, c.finish_reason) for c in candidates} == {
            ("writer", "openai", None, "stop")
        }
        before = len(model.requests)
        build(chain.root, "stage=sample", "rebuild=sample", *line)
        assert len(model.requests) == before
        assert (
            chain.manifest("sample", *line)["metrics"]["calls"]["sample.endpoint"]["kept"] == COUNT
        )
    for file in chain.root.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


@pytest.mark.extended
def test_candidates_that_overtake_each_other_make_one_file(chain: Chain) -> None:
    files = set[bytes]()
    with running(Model(says, late=0.05)) as model:
        line = asking(model.url, "sample.runtime.shard_size=5")
        for _ in range(2):
            build(chain.root, "stage=sample", "rebuild=sample", *line)
            files.add((chain.folder("sample", *line) / "candidates.parquet").read_bytes())
            shutil.rmtree(chain.root / "cache" / "calls")
        assert len(model.requests) == 2 * COUNT
    assert len(files) == 1


@pytest.mark.extended
def test_a_candidate_that_does_not_come_is_missing_and_too_many_stop(chain: Chain) -> None:
    def refuse(request: Request) -> str:
        return "" if request["seed"] % 20 else "x"

    with running(Model(refuse, refusal="I will not.")) as model, pytest.raises(UserError) as error:
        build(chain.root, "stage=sample", *asking(model.url))
    assert "96 of 96 candidates are" in str(error.value)
    assert "finish_reason refusal" in str(error.value) and "same replies" in str(error.value)
    with (
        running(Model(says)) as model,
        running(Proxy(model, 1.0, 0.0, ("400",))) as proxy,
        pytest.raises(UserError) as error,
    ):
        build(chain.root, "stage=sample", *asking(proxy.url))
    assert "HTTP 400" in str(error.value) and "same replies" in str(error.value)
    with running(Model(says)) as model, running(Proxy(model, 0.05, 0.0, ("500",))) as proxy:
        line = asking(proxy.url, "sample.endpoint.runtime.retries=0")
        build(chain.root, "stage=sample", *line)
        assert (
            len(load(chain.folder("sample", *line) / "candidates.parquet", Candidate))
            == COUNT - proxy.failed.total()
        )
        assert "HTTP 500" in chain.manifest("sample", *line)["warnings"][0]


@pytest.mark.extended
def test_what_did_not_come_is_asked_for_again_until_it_has_come_and_nothing_else_is(
    chain: Chain,
) -> None:
    """Request only missing candidates again. Each prompt fills a shard, and most prompts with a missing candidate have
    the other one."""
    with running(Model(says)) as model, running(Proxy(model, 0.4, 0.0, ("500",))) as proxy:
        line = asking(
            proxy.url,
            "sample.endpoint.runtime.retries=0",
            "sample.runtime.shard_size=1",
            "sample.max_failed=0",
        )
        left = COUNT
        for _ in range(2):
            n_before = len(model.requests)
            with pytest.raises(UserError, match=r"candidates are missing; ") as error:
                build(chain.root, "stage=sample", *line)
            left -= len(model.requests) - n_before
            assert f"{left} of {COUNT} candidates are missing" in str(error.value)
        proxy.share = 0.0
        build(chain.root, "stage=sample", *line)
        assert len(model.requests) == COUNT, "answered calls are not repeated"
        assert len(load(chain.folder("sample", *line) / "candidates.parquet", Candidate)) == COUNT
        assert not chain.manifest("sample", *line)["warnings"]


def test_without_any_candidate_the_stage_stops_whatever_is_allowed(chain: Chain) -> None:
    with running(Model(says)) as model, running(Proxy(model, 1.0, 0.0, ("500",))) as proxy:
        line = asking(proxy.url, "sample.endpoint.runtime.retries=0", "sample.max_failed=1")
        with pytest.raises(
            UserError, match=f"{COUNT} of {COUNT} candidates are missing.*HTTP 500.*never all"
        ):
            build(chain.root, "stage=sample", *line)


def test_what_cannot_change_an_answer_is_not_in_the_fingerprint(chain: Chain) -> None:
    def fingerprint(*overrides: str) -> str:
        return nodes(chain.root, *asking("http://127.0.0.1:1/v1", *overrides))["sample"].fingerprint

    plain = fingerprint()
    for neutral in (
        "api_key_env=A_KEY",
        "budget.money=3 sample.endpoint.price={input:1,output:2}",
        "runtime.retries=1",
    ):
        assert fingerprint(*f"sample.endpoint.{neutral}".split()) == plain
    for other in ("model=other", "base_url=http://127.0.0.1:2/v1", "extra.top_k=5"):
        assert fingerprint(f"sample.endpoint.{other}") != plain


@pytest.mark.extended
def test_paid_replies_remain_after_the_budget_ends(chain: Chain, tmp_path: Path) -> None:
    with running(Model(says)) as model:
        with pytest.raises(UserError, match=r"^sample.endpoint.budget.calls=50 .*: 50 calls"):
            build(chain.root, "stage=sample", *asking(model.url, "sample.endpoint.budget.calls=50"))
        assert len(model.requests) == 50
        build(chain.root, "stage=sample", *asking(model.url, "sample.endpoint.budget.calls=96"))
        assert len(model.requests) == COUNT
