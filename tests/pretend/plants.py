"""Mistakes in the product's source that only a GPU would show, each of one line."""

import ast
import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from stages.config.installation import ROOT


class Plant(NamedTuple):
    """A part of a file, what replaces it, and the flow that runs the place."""

    file: str
    right: str
    wrong: str
    flow: str


HF, SLOTS, DRAWING = "samplers/hf.py", "samplers/slots.py", "samplers/drawing.py"
PLANTS = [
    Plant(
        "models/run_attention.py",
        "send_tensor(torch.from_numpy(numbers), self.device)",
        "torch.from_numpy(numbers)",
        "dpo",
    ),
    Plant(
        "models/scoring.py",
        "send_batch(add_layout(model, padded), model.device)",
        "add_layout(model, padded)",
        "reference",
    ),
    Plant("models/packing.py", "self.places[1], packed", "self.places[1].cpu(), packed", "dpo"),
    Plant(
        "training/micro_batches.py",
        "torch.zeros((), device=self.args.device)",
        "torch.zeros(1)",
        "sft",
    ),
    Plant(
        "objectives/sft.py", "self.trainer.args.device)\n", "torch.device('cpu'))\n", "packed sft"
    ),
    Plant(HF, "send_tensor(torch.tensor(source), self.device)", "torch.tensor(source)", "sample"),
    Plant(HF, "input_ids=send_tensor(ids, self.device)", "input_ids=ids", "sample"),
    Plant(
        HF,
        "send_tensor(torch.tensor(order).argsort(), self.device)",
        "torch.tensor(order).argsort()",
        "sample",
    ),
    Plant(HF, "torch.arange(end, device=positions.device)", "torch.arange(end)", "sample"),
    Plant(SLOTS, "torch.zeros(rows, device=device)", "torch.zeros(rows)", "sample"),
    Plant(SLOTS, "torch.arange(rows, device=device)", "torch.arange(rows)", "sample"),
    Plant(
        DRAWING, "torch.arange(len(grid), device=grid.device)", "torch.arange(len(grid))", "sample"
    ),
    Plant(
        DRAWING,
        "torch.arange(1, count + 1, device=seeds.device)",
        "torch.arange(1, count + 1)",
        "sample",
    ),
    Plant("evaluation/likelihood.py", "send_tensor(padded, self.device)", "padded", "eval"),
    Plant(
        "evaluation/likelihood.py",
        "send_tensor(torch.tensor(completion), self.device)",
        "torch.tensor(completion)",
        "eval",
    ),
]


def function_of(module: types.ModuleType, qualname: str) -> types.FunctionType:
    """Return the Python function of this qualified name, under its decorators."""
    value: Any = module
    for name in qualname.split("."):
        value = vars(value)[name] if isinstance(value, type) else getattr(value, name)
    value = getattr(value, "__func__", value)  # of a class method
    value = getattr(value, "fget", None) or getattr(value, "func", value)  # of a property
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return value


def codes(code: types.CodeType) -> dict[str, types.CodeType]:
    """Return the code of every function and method that a module defines at its top level or in a class."""
    return {each.co_qualname: each for each in all_codes(code) if "<" not in each.co_qualname}


def all_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from all_codes(constant)


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Run a block with the mistake in place: the function's code is replaced, wherever it is imported."""
    path = ROOT / "stages" / plant.file
    text = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))  # one statement a line
    assert plant.right in text, plant
    module = importlib.import_module("stages." + plant.file.removesuffix(".py").replace("/", "."))
    right, wrong = (
        codes(compile(each, str(path), "exec"))
        for each in (text, text.replace(plant.right, plant.wrong))
    )
    changed = [name for name, code in right.items() if code != wrong[name] and is_function(code)]
    functions = [(function_of(module, name), wrong[name]) for name in changed]
    assert functions, plant
    before = [(function, function.__code__) for function, _ in functions]
    for function, code in functions:
        function.__code__ = code
    try:
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def is_function(code: types.CodeType) -> bool:
    return bool(code.co_flags & 1)  # CO_OPTIMIZED, which a class body lacks
