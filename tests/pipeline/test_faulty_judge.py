"""Tests that a failing judge server and a killed command do not change the chain's result."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.endpoints.servers import Model, Proxy, running
from tests.helpers import Chain, build
from tests.labelers.judging import by_letters, judging
from tests.pipeline.test_resume import CADENCE, kill_when

pytest.importorskip("openai")

SHARE = 1 / 3  # of calls that fail
HANG = 1.0  # seconds of a hang


def asking(url: str) -> tuple[str, ...]:
    """The command line of the tiny chain with the judge at this address."""
    runtime = "{retries: 50, backoff: 0.02, timeout: 0.5}"
    endpoint = f"{{base_url: '{url}', model: judge, runtime: {runtime}}}"
    return ("label=judge", f"label.endpoints=[{endpoint}]", "label.max_failed=0", "pairs=all")


def answered(root: Path) -> list[str]:
    """The keys of the requests whose answers a store keeps."""
    [file] = (root / "cache" / "calls").glob("*.jsonl")
    whole = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"}\n")]
    return [json.loads(line)["key"] for line in whole]


@pytest.mark.slow
def test_killed_amid_faults_a_judges_chain_ends_as_nobody_disturbed_it(
    chain: Chain, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    root = tmp_path / "disturbed"
    shutil.copytree(chain.root, root, symlinks=True)
    with (
        running(Model(judging(by_letters), late=0.02)) as model,
        running(Proxy(model, 0.0, HANG)) as proxy,
    ):
        line = asking(proxy.url)
        build(chain.root, "stage=dpo", *CADENCE, *line)
        calls = len(model.requests)
        proxy.share = SHARE
        for share in (0.3, 0.5):
            until = len(model.requests) + share * calls
            kill_when(lambda until=until: len(model.requests) >= until, root, "dpo", False, *line)
        build(root, "stage=dpo", *CADENCE, *line)
    assert sorted(answered(root)) == sorted({*answered(chain.root)}), "each request once"
    for name in ("label", "pairs"):
        digests = {store.manifest(name, *line)["digest"] for store in (Chain(root), chain)}
        assert len(digests) == 1, name
    weights = Path("model", "model.safetensors")
    disturbed = load_file(Chain(root).folder("dpo", *line) / weights)
    for name, tensor in load_file(chain.folder("dpo", *line) / weights).items():
        assert (disturbed[name] == tensor).all(), name
