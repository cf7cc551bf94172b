"""Sweeps share what is upstream: nothing is built twice, in one process or in several."""

import time
from pathlib import Path

import pytest

from stages.store import Store
from tests.helpers import TINY, Chain, command

SWEEP = ("stage=dpo", "sft.learning_rate=5e-3,2e-3", "dpo.beta=0.1,0.5", "-m")
EXPECTED = {"base": 1, "data": 1, "sft": 2, "sample": 2, "label": 2, "pairs": 2, "reference": 2, "dpo": 4}


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_sweep_of_two_rates_and_two_betas_trains_two_sfts(launcher: tuple[str, ...], tmp_path: Path) -> None:
    ran = command(*TINY, *SWEEP, *launcher, f"outputs={tmp_path}")
    assert ran.returncode == 0, ran.stderr
    chain = Chain(tmp_path)
    assert chain.count() == EXPECTED
    attempts = [len(manifest["attempts"]) for _, manifest in Store(tmp_path).manifests()]
    assert set(attempts) == {1}, "no node was begun twice"
    ended = [manifest["ended"] for _, manifest in Store(tmp_path).manifests()]

    started = time.time()
    again = command(*TINY, *SWEEP, *launcher, f"outputs={tmp_path}")
    assert again.returncode == 0, again.stderr
    assert [m["ended"] for _, m in Store(tmp_path).manifests()] == ended
    assert max(ended) < started, "the second sweep built nothing"
