"""Tests of the GPUs that a machine describes. A script with nvidia-smi's output formats stands in for the driver."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.hardware import machine
from stages.preflight import building
from stages.store.store import Store
from tests.helpers import nodes

DRIVER = """#!{python}
import json, sys
from pathlib import Path

answers = json.loads(Path(__file__).with_suffix(".json").read_text())
if sys.argv[1:] == ["-L"]:
    print(*answers["listed"], sep="\\n")
else:
    queried, form = sys.argv[1:]
    assert form == "--format=csv,noheader,nounits"
    for card in answers["cards"]:
        print(", ".join(card[field] for field in queried.removeprefix("--query-gpu=").split(",")))
"""
KINDS = {
    "0": ("NVIDIA H200", "9.0", 143_000),
    "1": ("NVIDIA L4", "8.9", 22_000),
    "2": ("NVIDIA A100-SXM4-40GB", "8.0", 0),
}
UUIDS = {
    "0": "GPU-5d5ba0d6-d33d-2b2c",
    "1": "GPU-5d5ba0d6-0000-2b2c",
    "2": "GPU-e86cb44c-6756-fd30",
}
INSTANCES = {"MIG-c6d4f1ef-42e4-5de3": "3g.20gb", "MIG-cba663e8-9bed-5b25": "1g.5gb+me"}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """nvidia-smi of a machine with two GPUs and a third one that is divided into two instances."""
    script = tmp_path / "nvidia-smi"
    script.write_text(DRIVER.format(python=sys.executable))
    script.chmod(0o755)
    cards = []
    listed = list[str]()
    for index, (name, capability, free) in KINDS.items():
        card = {"index": index, "uuid": UUIDS[index], "name": name, "compute_cap": capability}
        card |= {"memory.free": str(free), "mig.mode.current": "Disabled"}
        if index == "2":
            card |= {"memory.free": "[N/A]", "mig.mode.current": "Enabled"}
        cards.append(card)
        listed.append(f"GPU {index}: {name} (UUID: {UUIDS[index]})")
    for number, (uuid, profile) in enumerate(INSTANCES.items()):
        listed.append(f"  MIG {profile:<12} Device  {number}: (UUID: {uuid})")
    script.with_suffix(".json").write_text(json.dumps({"cards": cards, "listed": listed}))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine.driver_gpus.cache_clear()
    yield script
    machine.driver_gpus.cache_clear()


FIRST = UUIDS["0"]
SECOND = UUIDS["1"]
LARGER, SMALLER = INSTANCES


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", [FIRST]),
        ("1,0", [SECOND, FIRST]),
        ("1,7,0", [SECOND]),  # an invalid entry ends the list
        ("-1", []),
        ("1,1", []),  # a repeated one empties it
        ("GPU-5d5ba0d6-0,GPU-5d5ba0d6-d", [SECOND, FIRST]),
        (SMALLER, [SMALLER]),
        (f"{SMALLER},{LARGER}", [SMALLER]),  # of several instances CUDA shows one
        ("2", [LARGER]),
        ("0,2", [LARGER]),  # and no other GPU beside it
        (None, [LARGER]),
    ],
)
def test_the_gpus_described_are_those_that_cuda_shows(
    visible: str | None, expected: list[str], driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.uuid for gpu in machine.visible_gpus()] == expected
    first = machine.gpu()
    assert (first.uuid if first else None) == (expected[0] if expected else None)


def test_a_gpu_and_an_instance_have_their_own_memory(driver: Path) -> None:
    gpus = machine.driver_gpus()
    for index in "01":
        name, capability, free = KINDS[index]
        assert gpus[index] == (name, float(capability), free * 2**20, UUIDS[index])
    assert [gpus[uuid].free_memory for uuid in INSTANCES] == [20 * 10**9, 5 * 10**9]
    assert {gpus[uuid].compute_capability for uuid in INSTANCES} == {float(KINDS["2"][1])}


def test_more_processes_than_gpus_are_refused(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    sft = nodes(tmp_path, "launch=ddp", "launch.processes=2", "sft.runtime.device=cuda")["sft"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    building.require_device(sft, store)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,7")
    with pytest.raises(UserError, match=r"processes=2 .* CUDA shows 1"):
        building.require_device(sft, store)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux describes its processors in a file")
@pytest.mark.parametrize(
    ("vendor", "flags", "faster"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_bf16_is_chosen_for_processors_that_are_faster_in_it(
    vendor: str, flags: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine.driver_gpus.cache_clear()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} rdpid\n")
    assert machine.computes_bf16(cpuinfo) is faster
