"""The labeler with a real model at a real server."""

from pathlib import Path

import pytest

from stages.store.records import Judgement
from tests.bench import judge
from tests.bench.injection import CASES

pytest.importorskip("openai")


@pytest.mark.slow
def test_a_real_model_gives_a_verdict_or_a_reason_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="`make slow` installs it")
    monkeypatch.setattr(judge, "FOLDER", tmp_path)
    cases = judge.pool(
        [([{"role": "user", "content": request}], good, poor) for request, good, poor in CASES[:4]]
    )
    with judge.serving([]) as served:
        judgements = judge.judge_pool(cases, served)
        (calls,) = (tmp_path / "calls").rglob("*.jsonl")
        content = calls.read_bytes()
        repeated = judge.judge_pool(cases, served)
    assert [*map(str, repeated)] == [*map(str, judgements)] and calls.read_bytes() == content
    assert [j.prompt_id for j in judgements] == [prompt.id for prompt in cases.prompts]
    assert all(
        isinstance(j, Judgement) and (j.preference in ("a", "b", "tie")) != bool(j.error)
        for j in judgements
    )
