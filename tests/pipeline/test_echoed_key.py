"""Tests that an API key which a server repeats in its answers gets into no file, page or log."""

import logging

import pytest

from stages.store.records import Candidate, Judgement, load
from tests.endpoints.servers import Model, Request, running
from tests.helpers import SECRET, Chain, build

pytest.importorskip("openai")


@pytest.mark.extended
def test_a_key_that_a_writer_and_a_judge_repeat_is_in_no_file_of_the_store(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("A_KEY", SECRET)

    def writes(request):
        return f"{SECRET} {'long ' * (request['seed'] % 7)}"

    def judges(request: Request) -> str:
        return f"I was sent {SECRET.encode().hex()}.\nVerdict: A"

    with (
        running(Model(writes, reasoning=SECRET)) as writer,
        running(Model(judges, reasoning=SECRET)) as judge,
    ):
        keyed = "model: NAME, api_key_env: A_KEY"
        line = (
            "stage=label",
            "sample=openai",
            f"sample.endpoint.base_url={writer.url}",
            "sample.endpoint.model=writer",
            "sample.endpoint.api_key_env=A_KEY",
            "sample.candidates_per_prompt=2",
            "label=judge",
            f"label.endpoints=[{{base_url: '{judge.url}', {keyed}}}]",
            "label.reading=text",
        )
        build(chain.root, *line)
        assert {*writer.keys, *judge.keys} == {f"Bearer {SECRET}"}
    candidates = load(chain.folder("sample", *line) / "candidates.parquet", Candidate)
    judgements = load(chain.folder("label", *line) / "judgements.parquet", Judgement)
    assert all(c.text.startswith("***") for c in candidates)
    replies = [j.raw for j in judgements if j.raw]
    assert replies and all("I was sent ***." in raw for raw in replies)
    assert "***" in (chain.root / "labels.html").read_text()
    files = [file for file in chain.root.rglob("*") if file.is_file()]
    for form in (SECRET, SECRET.encode().hex()):
        assert form not in caplog.text
        assert not [file for file in files if form.encode() in file.read_bytes()]
