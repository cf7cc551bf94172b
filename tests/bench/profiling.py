"""Group the profiler's operators of a training step on a CPU by purpose."""

from collections import defaultdict

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

PARENTS = {  # an operator belongs to what it was called by
    "LM head": ("ChunkedLogProb", "CPULogProb"),
    "optimizer": ("Optimizer.", "_fused_adamw_", "_foreach_"),
}
OPERATORS = {
    "attention": ("flash_attention", "scaled_dot_product", "aten::_softmax"),
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::linear",
        "aten::matmul",
        "mkldnn",
    ),
    "casts and copies": (
        "aten::copy_",
        "aten::_to_copy",
        "aten::to",
        "aten::clone",
        "aten::contiguous",
    ),
    "packing": ("aten::index", "aten::gather", "aten::masked"),
    "norms, activations, rotary": tuple(
        f"aten::{name}"
        for name in [
            "mul",
            "add",
            "sub",
            "div",
            "pow",
            "mean",
            "rsqrt",
            "silu",
            "sigmoid",
            "neg",
            "cat",
            "sum",
            "exp",
            "cos",
            "sin",
            "zero",
            "fill",
            "slice",
        ]
    ),
}


def profiler() -> profile:
    return profile(activities=[ProfilerActivity.CPU])


def groups(profiler: profile) -> dict[str, float]:
    """Shares of the time that was profiled, the largest first; what no operator took is Python and waiting."""
    events = [e for e in profiler.events() if e.device_type.name == "CPU"]
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[group(event)] += event.self_cpu_time_total
    whole = max(e.time_range.end for e in events) - min(e.time_range.start for e in events)
    spent["between operators"] += whole - sum(spent.values())
    return {name: t / whole for name, t in sorted(spent.items(), key=lambda item: -item[1])}


def group(event: FunctionEvent) -> str:
    above: FunctionEvent | None = event
    while above is not None:
        for name, marks in PARENTS.items():
            if any(mark in above.name for mark in marks):
                return name
        above = above.cpu_parent
    return next(
        (name for name, marks in OPERATORS.items() if any(m in event.name for m in marks)),
        "other operators",
    )
