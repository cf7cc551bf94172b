"""A real model at a real server judges, through the labeler itself."""

from pathlib import Path

import pytest

from stages.store.records import Judgement
from tests.bench import judge
from tests.bench.injection import CASES

pytest.importorskip("openai")


@pytest.mark.slow
def test_a_real_model_decides_or_is_missing_with_a_reason_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="`make slow` installs it")
    monkeypatch.setattr(judge, "FOLDER", tmp_path)
    given = judge.pool([([{"role": "user", "content": request}], good, poor) for request, good, poor in CASES[:4]])
    with judge.serving([]) as asked:
        found = judge.judged(given, asked)
        (calls,) = (tmp_path / "calls").rglob("*.jsonl")
        kept = calls.read_bytes()
        again = judge.judged(given, asked)
    assert [*map(str, again)] == [*map(str, found)] and calls.read_bytes() == kept
    assert [j.prompt_id for j in found] == [prompt.id for prompt in given.prompts]
    assert all(isinstance(j, Judgement) and (j.preference in ("a", "b", "tie")) != bool(j.error) for j in found)
