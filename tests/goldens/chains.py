"""What tiny chains of every objective compute, by command and role: tables, weights, curves and metrics."""

import json
import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from stages.store.store import Store
from tests.endpoints.servers import Model, running
from tests.goldens import runs
from tests.goldens.records import Commands, Comparison, read_record, write_record
from tests.labelers.judging import by_letters, judging

TINY = ["recipe=tiny", "tracker=none", "precision=fp32"]
INPUTS = "INPUTS"  # stands for the folder of files that this module writes
PROCESSOR = "processor"  # the entry of the machine that computed the others
NOT_COMPARABLE = (
    "recorded on another processor. Record them here in a checkout of the commit before, and copy "
    "its file."
)
# The local judge is asked at this address through a proxy, since the port of a server would enter the settings.
JUDGE = "[{base_url: 'http://models.example/v1', model: judge, runtime: {backoff: 0.02}}]"
LINES = [
    "stage=eval",
    "stage=dpo dpo.loss_type=[ipo]",
    "stage=dpo dpo.loss_type=[sigmoid,sft] dpo.loss_weights=[1,0.2]",
    "stage=eval align=kto kto.batch_size=8",
    "stage=eval align=grpo grpo.temperature=1.5",
    "stage=reward",
    "stage=eval control=true",
    "stage=eval rounds=2",
    "stage=eval sft.adapter=lora dpo.adapter=lora",
    "stage=dpo sft.packing=true sft.batch_size=1",
    f"stage=dpo label=judge 'label.endpoints={JUDGE}' pairs=all",
    f"stage=eval label=dataset label.path={INPUTS}/preferences.jsonl pairs=all",
]


@dataclass
class Chains(Commands):
    """The part whose record is of one processor: weights and samples repeat there alone."""

    def recorded(self) -> dict[str, Any]:
        values = read_record(self.name)
        values.pop(PROCESSOR, None)
        return values

    def record(self) -> None:
        super().record()
        write_record(self.name, {PROCESSOR: processor(), **self.recorded()})

    def check(self) -> Comparison:
        if not self.is_of_this_processor():
            return Comparison(left_out=NOT_COMPARABLE)
        return super().check()

    def is_of_this_processor(self) -> bool:
        """Return whether the record can be compared here: it names this processor, or none."""
        return read_record(self.name).get(PROCESSOR) in (None, processor())


def commands() -> list[str]:
    return LINES


def measure(lines: Iterable[str]) -> dict[str, Any]:
    """Return by line what each of its nodes made. A node that an earlier line has made is in that line's value alone."""
    values, described = dict[str, Any](), set[str]()
    with tempfile.TemporaryDirectory() as folder, local_judge():
        write_preferences(Path(folder))
        root = Path(folder, "outputs")
        for line in lines:
            nodes = runs.run(root, TINY + shlex.split(line.replace(INPUTS, folder)))
            if "refused" in nodes:
                values[line] = nodes
                continue
            values[line] = {}
            for name, node in nodes.items():
                place = Store(root).folder(node)
                if place.exists() and node.fingerprint not in described:
                    values[line][name] = runs.describe(place)
                    described.add(node.fingerprint)
    return values


def processor() -> str:
    """Return the processor's model and the instructions that torch uses on it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    return f"{model.strip()} {torch.backends.cpu.get_cpu_capability()}"


@contextmanager
def local_judge() -> Iterator[None]:
    """Answer every call of a judge while the block runs."""
    with running(Model(judging(by_letters))) as model:
        proxy = {"http_proxy": model.url.removesuffix("/v1"), "no_proxy": ""}
        with mock.patch.dict(os.environ, proxy):
            yield


def write_preferences(folder: Path) -> None:
    parities = ("even", "odd")
    rows = [
        {
            "prompt": f"Is {n} odd or even? One word.",
            "chosen": parities[n % 2],
            "rejected": parities[1 - n % 2],
        }
        for n in range(64)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "preferences.jsonl").write_text(text)


PART = Chains("chains", commands, measure)
