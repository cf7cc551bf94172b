"""The whole chain, stage by stage: `python -m tests.bench.chain [small|even] [profile] [KEY=VALUE …]`.

The embedded 135M model on fewer rows than in the demo; `small` is `recipe=tiny` instead. With `even`, SFT, reference
and DPO alone, on random conversations and pairs of 200 tokens, half of them prompt. Prints seconds, tokens per
second and peak memory of every stage, and for SFT, reference and DPO the model's operations per second (`flops.py`) as
a share of what this machine's matrix products reach, measured before and after the chain. Training is timed from step
to step, without the first step and without evaluations; the reference while it scores. `profile` adds where the time
of some DPO steps went. Writes all figures to outputs/bench/chain.json.
"""

import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.cli import compose
from stages.cli.main import run
from stages.hardware import process
from stages.store.manifest import Manifest
from stages.tracking import tracker
from stages.tracking.tracker import Run
from tests.helpers import ROOT, composed

SIZES = (
    "data.tasks.sft=280",
    "data.tasks.preference=280",
    "data.tasks.validation=56",
    "data.tasks.test=120",
)
SIZES += ("data.tasks.unseen_phrasings=80", "data.tasks.unseen_tasks=60", "data.tasks.rephrased=6")
PROFILED = 3  # steps
EVEN = (
    "data=file",
    "label=dataset",
    "sft.epochs=1",
    "sft.batch_size=4",
    "sft.runtime.micro_batch=auto",
)
EVEN += ("dpo.epochs=1",)
DIGITS = {"prompt": 70, "answer": 98}  # a token each; the template adds the rest of 200
CONVERSATIONS, PAIRS = 240, 120
RESULTS = ROOT / "outputs" / "bench" / "chain.json"


class Clock(Run):
    """A tracker that notes how long training steps take. With a profiler, which runs during some of the first steps,
    those are not among them."""

    def __init__(self, profiler: Any = None) -> None:
        self.profiler, self.seconds = profiler, list[float]()
        self.last: float | None = None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        now = time.perf_counter()
        if "grad_norm" not in metrics:  # after an evaluation, the best model may be saved
            self.last = None
            return
        if self.profiler and step == 1:
            self.profiler.start()
        if self.profiler and step == 1 + PROFILED:
            self.profiler.stop()
            self.profiler, self.last = None, time.perf_counter()
            return
        if self.last is not None and not self.profiler:
            self.seconds.append(now - self.last)
        self.last = now


def even(folder: Path) -> tuple[str, ...]:
    """Overrides for conversations and pairs of equal length."""
    draw = random.Random(0)

    def write(kind):
        return "".join(draw.choices("0123456789", k=DIGITS[kind]))

    conversations = [
        {"prompt": write("prompt"), "completion": write("answer")} for _ in range(CONVERSATIONS)
    ]
    pairs = [
        {"prompt": write("prompt"), "chosen": write("answer"), "rejected": write("answer")}
        for _ in range(PAIRS)
    ]
    files = []
    for rows in (conversations, pairs):
        files.append(folder / f"{len(files)}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (*EVEN, f"data.sources=[{{path: {files[0]}}}]", f"label.path={files[1]}")


def main(kind: str, profiled: bool, overrides: list[str]) -> None:
    from stages import reference  # torch, only after the environment is set
    from tests.bench import flops, profiling

    profiler = profiling.profiler() if profiled else None
    clocks: dict[str, Clock] = {}
    tracker.start = lambda settings, node, root: clocks.setdefault(
        node.stage, Clock(profiler if node.stage == "dpo" else None)
    )
    scoring: list[float] = []
    reference.pair_log_probs = timed(reference.pair_log_probs, scoring)
    with tempfile.TemporaryDirectory() as outputs:
        sizes = (
            even(Path(outputs))
            if kind == "even"
            else ("recipe=tiny",)
            if kind == "small"
            else SIZES
        )
        last = "stage=dpo" if kind == "even" else "stage=eval"
        chosen = (f"outputs={outputs}/store", last, *sizes, *overrides)
        cfg, store, nodes = compose.prepare(composed(*chosen))
        run(composed(*chosen, "stage=base"))
        model = flops.empty(store.folder(nodes["base"]) / "model")
        before = flops.peaks(model)
        run(composed(*chosen))
        peaks = {
            precision: before[precision] + rates for precision, rates in flops.peaks(model).items()
        }
        stages = [of_stage(manifest) for _, manifest in store.manifests()]
        at = {
            name: store.folder(nodes[name])
            for name in ("base", "data", "sft", "pairs", "reference", "dpo")
        }
        work = {
            "sft": flops.of_sft(model, cfg.sft, at),
            "reference": flops.of_reference(model, at),
            "dpo": flops.of_dpo(model, cfg.dpo, at),
        }
    seconds = {
        name: work[name].steps * statistics.mean(clocks[name].seconds) for name in ("sft", "dpo")
    }
    seconds["reference"] = sum(scoring)
    used = {
        name: {
            "seconds": seconds[name],
            "tokens": operations.tokens,
            "operations": operations.operations,
            "share_of_peak": operations.operations
            / seconds[name]
            / statistics.median(peaks[vars(cfg)[name].precision]),
        }
        for name, operations in work.items()
    }
    where = profiling.groups(profiler) if profiler else {}
    show(stages, peaks, used, where)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "stages": stages,
        "peaks": peaks,
        "used": used,
        "profile": where,
        "overrides": chosen[1:],
    }
    RESULTS.write_text(json.dumps(results, indent=1))
    logging.info("all figures: %s", RESULTS)


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, which now also notes how long each call takes."""

    def watched(*args: Any) -> Any:
        started = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - started)
        return result

    return watched


def of_stage(manifest: Manifest) -> dict[str, Any]:
    model_inputs = manifest["inputs"].get("model")
    name = f"{manifest['stage']} {model_inputs['stage']}" if model_inputs else manifest["stage"]
    row = {
        "stage": name,
        "seconds": manifest["wall_seconds"],
        "tokens": manifest["metrics"].get("tokens"),
    }
    return row | {
        "peak_memory": manifest["peak_memory"],
        "peak_gpu_memory": manifest["peak_gpu_memory"],
    }


def show(
    stages: list[dict[str, Any]],
    peaks: dict[str, list[float]],
    used: dict[str, Any],
    where: dict[str, float],
) -> None:
    logging.info("%-14s %9s %9s %9s %8s", "stage", "seconds", "tokens", "tokens/s", "GiB")
    for s in stages:
        tokens, rate = (
            (s["tokens"], f"{s['tokens'] / s['seconds']:.0f}") if s["tokens"] else ("", "")
        )
        memory = s["peak_gpu_memory"] or s["peak_memory"]
        logging.info(
            "%-14s %9.1f %9s %9s %8.1f", s["stage"], s["seconds"], tokens, rate, memory / 2**30
        )
    for precision, rates in peaks.items():
        low, middle, high = min(rates) / 1e9, statistics.median(rates) / 1e9, max(rates) / 1e9
        logging.info(
            "matrix products in %s: %.0f GFLOP/s (%.0f to %.0f)", precision, middle, low, high
        )
    logging.info("%-14s %9s %9s %9s %8s", "computing", "seconds", "tokens/s", "GFLOP/s", "of peak")
    for name, u in used.items():
        rates = u["tokens"] / u["seconds"], u["operations"] / u["seconds"] / 1e9
        logging.info(
            "%-14s %9.1f %9.0f %9.0f %7.1f%%", name, u["seconds"], *rates, 100 * u["share_of_peak"]
        )
    for name, share in where.items():
        logging.info("%5.1f%% of DPO steps: %s", 100 * share, name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    words = sys.argv[1:]
    kind = next((word for word in ("small", "even") if word in words), "")
    main(kind, "profile" in words, ["tracker=none", *(word for word in words if "=" in word)])
