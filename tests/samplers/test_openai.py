"""Candidates of another model over HTTP (`sample=openai`) in the pipeline. Each call is paid for once."""

import json

import pytest

from stages.config.errors import UserError
from stages.store.records import Candidate, load
from tests.endpoints.servers import Model, Proxy, Request, running
from tests.helpers import SECRET, Chain, build

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
