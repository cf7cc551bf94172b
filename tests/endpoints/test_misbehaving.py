"""Replies of misbehaving judge servers: judgements are present or missing with a reason, the budget is right, and
neither files nor logs contain the API key."""

import base64
import copy
import logging
import re
import tempfile
import urllib.parse
from functools import cache
from pathlib import Path

import pytest

from stages.config.blocks.endpoints import Endpoint, EndpointRuntime
from stages.config.errors import UserError
from stages.hardware import process
from stages.labelers.judge import JudgeLabeler
from stages.store.records import Judgement
from tests.endpoints.misbehaving import WAYS, Misbehaving
from tests.endpoints.servers import running
from tests.labelers.judging import block
from tests.rows import pool, work_with_calls

pytest.importorskip("openai")
KEY = "sk-0/1+2=abcDEF0123456789"  # characters that every encoding escapes differently
FORMS = [
    KEY,
    KEY.encode().hex(),
    urllib.parse.quote(KEY, safe=""),
    "".join(f"\\u{ord(c):04X}" for c in KEY),
    base64.b64encode(f"Bearer {KEY}".encode()).decode()[12:-4],
]
LABEL = cache(
    lambda: block(Path(tempfile.mkdtemp()), "http://x", reading="text", attempts=1, max_failed=1.0)
)
CALLS, TIMEOUT = 4, 2.0  # two comparisons in both orders


def judged(url: str, folder: Path) -> tuple[list[Judgement] | UserError, JudgeLabeler]:
    label = copy.deepcopy(LABEL())
    runtime = EndpointRuntime(timeout=TIMEOUT, retries=0)
    label.endpoints = [Endpoint(url, "judge", "JUDGE_KEY", runtime=runtime)]
    labeler = JudgeLabeler(label, work_with_calls(folder))
    try:
        return sorted(labeler.judge_all(pool(["one", "two"], ["three", "four"])), key=str), labeler
    except UserError as error:
        return error, labeler


def peak() -> float:
    """Return the largest memory of this process in MB since the last call."""
    megabytes = (
        int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1000
    )
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes


@pytest.mark.extended
@pytest.mark.parametrize("name", WAYS)
def test_judgements_are_there_or_missing_with_a_reason_in_time_and_memory_and_the_key_is_nowhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process.prepare()
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    LABEL()
    way, expected = WAYS[name]
    with running(Misbehaving(way)) as server:
        peak()
        before = peak()
        judgements, labeler = judged(server.url, tmp_path)
        more = peak() - before
        logging.info("%-25s %6.0f MB more, %6.1f MB sent", name, more, server.sent / 1e6)
        assert more < 200
        if isinstance(judgements, UserError):
            assert re.search(expected, str(judgements))
        else:
            assert len(judgements) == 2
            for judgement in judgements:
                assert re.search(expected or "^None$", str(judgement.error))
        spent = labeler.judges[0].spending
        n_requests = server.n_requests
        most = labeler.cfg.max_tokens or 0
        assert n_requests <= spent.calls <= CALLS
        assert 0 <= spent.input <= spent.calls * 10_000, "a token has at least one byte"
        assert 0 <= spent.output <= spent.calls * most
        if name in ("usage of 400 digits", "usage in words"):
            assert spent.output == spent.calls * most
        if not expected:
            judgements_again, _ = judged(server.url, tmp_path)
            assert judgements_again == judgements and server.n_requests == n_requests, (
                "paid replies are cached"
            )
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for content in (f"{judgements} {caplog.text}".encode(), *files):
        assert not [form for form in FORMS if form.encode() in content]
