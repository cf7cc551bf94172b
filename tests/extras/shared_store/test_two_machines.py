"""A test of the real pipeline on two machines: two home folders and two stores, with one remote."""

import os
from pathlib import Path

import pytest

from stages.cli.sweep import sweep_metric
from stages.config.exit_codes import GateCode
from stages.extras.shared_store.mirror import RemoteMirror
from stages.store.store import Store
from tests.extras.shared_store.s3 import S3
from tests.helpers import TINY, Chain, command, inside, nodes, settings


@pytest.mark.extended
def test_a_second_machine_builds_nothing(s3: S3, tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        home = tmp_path / name
        home.mkdir()
        line = (*TINY, "stage=data", f"outputs={home / 'outputs'}", f"store.remote={s3.url}")
        ran = command(*line, env={**os.environ, "HOME": str(home)})
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout + ran.stderr)
        assert "word-of-secret" not in outputs[-1]
    assert ": built " in outputs[0]
    assert ": built " not in outputs[1] and "pulled from s3://" in outputs[1]
    first, second = (
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.glob("data/*/**/*")
            if path.is_file()
        }
        for root in (tmp_path / "a" / "outputs", tmp_path / "b" / "outputs")
    )
    assert first and first == second


@pytest.mark.extra("sync", "chat", "export", "gate")
@pytest.mark.extended
def test_what_was_sent_serves_every_command_of_another_machine(
    chain: Chain, tmp_path: Path
) -> None:
    remote = f"store.remote={tmp_path / 'shared'}"
    sync = (*TINY, "stage=sync", f"outputs={chain.root}", remote)
    first, second = inside(*sync), inside(*sync)
    count = sum(chain.count().values())
    for ran, sent in ((first, f"{count} nodes ("), (second, "0 nodes (")):
        assert ran.returncode == 0, ran.stderr
        [line] = [each for each in ran.stdout.splitlines() if str(tmp_path / "shared") in each]
        assert line.startswith(sent) and " MiB" in line
    for stage in ("report", "eval", "pairs", "dpo"):
        ran = inside(*TINY, f"stage={stage}", f"outputs={tmp_path / stage}", remote)
        assert ran.returncode == 0, ran.stderr
        assert "pulled from" in ran.stdout and ": built " not in ran.stdout
    pulled = (f"outputs={tmp_path / 'report'}", remote)
    assert inside("stage=chat", *pulled, typed="hello\n").returncode == 0
    gate = inside("stage=gate", *pulled, "gate.against=sft")
    assert gate.returncode == GateCode.cannot_tell, gate.stderr
    export = (*TINY, "stage=export", "export.format=dataset", f"outputs={tmp_path / 'new'}", remote)
    assert inside(*export).returncode == 0


def test_a_sweep_reads_its_metric_from_the_remote(chain: Chain, tmp_path: Path) -> None:
    sender = Store(chain.root, mirror=RemoteMirror(str(tmp_path / "shared"), chain.root))
    sender.share_all()
    root = tmp_path / "other"
    cfg = settings(*TINY, "stage=report")
    graph = nodes(root)
    expected = chain.manifest("eval")["metrics"]["pass_rate"]["policy"]
    assert sweep_metric(cfg, graph, Store(root)) is None, "nothing is there"
    pulled = Store(root, mirror=RemoteMirror(str(tmp_path / "shared"), root))
    assert sweep_metric(cfg, graph, pulled) == expected
    assert sweep_metric(cfg, graph, Store(root)) == expected


@pytest.mark.extended
def test_a_run_that_could_not_be_shared_is_complete(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("no folder")
    ran = inside(
        *TINY, "stage=data", f"outputs={chain.root}", f"store.remote={tmp_path / 'shared'}"
    )
    assert ran.returncode == 1
    assert "Next: " in ran.stdout
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: store.remote=") and f"stage=sync outputs={chain.root}" in last
    [page] = (chain.root / "pages").glob("data-*.html")
    assert "Stopped" not in page.read_text()
