"""Tests that a failing judge server and a killed command do not change the chain's result."""

import shutil
from pathlib import Path

import pytest

from tests.bench import judge_kills, kills
from tests.endpoints.servers import Model, Proxy, running
from tests.helpers import Chain, build
from tests.labelers.judging import judging
from tests.pipeline.test_resume import CADENCE, kill_when

pytest.importorskip("openai")


@pytest.mark.slow
def test_killed_amid_faults_a_judges_chain_ends_as_nobody_disturbed_it(
    chain: Chain, tmp_path: Path
) -> None:
    """Kill once; `python -m tests.bench.judge_kills` does this 40 times, up to the report."""
    pytest.importorskip("openai")
    root = tmp_path / "disturbed"
    shutil.copytree(chain.root, root, symlinks=True)
    with (
        running(Model(judging(judge_kills.by_letters), late=0.02)) as model,
        running(Proxy(model, 0.0, judge_kills.HANG)) as proxy,
    ):
        line = judge_kills.asking(proxy.url)
        build(chain.root, "stage=dpo", *CADENCE, *line)
        calls, proxy.share = len(model.requests), judge_kills.SHARE
        for share in (0.3, 0.5):
            until = len(model.requests) + share * calls
            kill_when(lambda until=until: len(model.requests) >= until, root, "dpo", False, *line)
        build(root, "stage=dpo", *CADENCE, *line)
    assert judge_kills.twice_answered(root, chain.root) == ""
    for name in ("label", "pairs", "reference", "dpo"):
        assert (
            kills.differs(Chain(root).folder(name, *line), chain.folder(name, *line), "judge") == []
        ), name
