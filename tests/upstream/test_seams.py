"""Every place where this code leans on a private part of another library is on one page, and they are few.

Such a place is found in the sources: a private name, a patch, or an assignment to an object of theirs."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from transformers import Trainer

from stages.config.installation import ROOT
from tests.upstream.parts import Parts

PAGE = ROOT / "docs" / "reference" / "private-apis.md"
ROW = re.compile(r"^\| `([^`]+)`", re.MULTILINE)
SOURCES = sorted((ROOT / "stages").rglob("*.py"))
MOST = 36
OURS = {"self", "cls", "os", "ctx"}  # `ctx` of an autograd function is there to be given attributes
DOCUMENTED = {"_replace", "_asdict", "_fields", "_exit"}  # of a NamedTuple, and of `os`
# Attributes of their objects that their documentation says may be set.
SETTABLE = {
    "activation_checkpointing",
    "argtypes",
    "caption",
    "caption_justify",
    "chat_template",
    "daemon",
    "data",
    "data_collator",
    "decoder",
    "eos_token",
    "eos_token_id",
    "filters",
    "forward",
    "generation_config",
    "gradient_checkpointing",
    "info",
    "last_hidden_state",
    "max_num_batched_tokens",
    "max_num_seqs",
    "name_or_path",
    "pad_token",
    "pad_token_id",
    "pre_tokenizer",
    "raiseExceptions",
    "restype",
    "router_logits",
    "should_evaluate",
    "should_save",
    "should_training_stop",
    "sync_gradients",
    "tag",
    "train_dataset",
    "_value_",  # of a member, in the `__new__` of an enumeration
    "__file__",
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_") and name not in DOCUMENTED


@cache
def our_names() -> set[str]:
    """Fields and attributes of our own classes."""
    names = set[str]()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names.add(node.attr)
    return names


def seams_of(tree: ast.AST) -> Iterator[str]:
    """Yield the names of other libraries that a module reaches for without being invited."""
    library = set[str]()  # names of modules and classes that are imported from elsewhere
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                package = (module or alias.name).split(".")[0]
                if package in {"stages", *sys.stdlib_module_names}:
                    continue
                library.add(alias.asname or alias.name.split(".")[0])
                parts = [*module.split("."), *alias.name.split(".")]
                if any(map(private, parts)):
                    yield ".".join(filter(None, parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from seams_of_attribute(node, library)
        elif isinstance(node, ast.Call):
            yield from seams_of_call(node)


def seams_of_attribute(node: ast.Attribute, library: set[str]) -> Iterator[str]:
    owner = ast.unparse(node.value)
    is_ours = owner.split(".")[0] in OURS
    if private(node.attr) and owner not in OURS:
        yield node.attr
        return
    is_stored = not isinstance(node.ctx, ast.Load) and not is_ours
    if is_stored and (owner in library or node.attr not in our_names() | SETTABLE):
        yield node.attr


def seams_of_call(node: ast.Call) -> Iterator[str]:
    function = ast.unparse(node.func)
    if function in ("patch.object", "patch.multiple"):
        for argument in node.args:
            if isinstance(argument, ast.Constant):
                yield str(argument.value)
        for keyword in node.keywords:
            yield str(keyword.arg)
    elif function in ("setattr", "delattr", "object.__setattr__"):
        yield ast.unparse(node)


def inherited() -> Iterator[type]:
    """Yield our classes that inherit from another library's."""
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if kind.__module__ == name:
                yield kind


def overridden() -> set[str]:
    """Return the private methods of other libraries that classes of ours override."""
    names = set[str]()
    for kind in inherited():
        ours = [base for base in kind.__mro__ if base.__module__.startswith("stages.")]
        theirs = [base for base in kind.__mro__ if base not in ours]
        for base in ours:  # a mixin overrides what a class beside it has
            for name, value in vars(base).items():
                is_method = inspect.isfunction(value) and private(name)
                if is_method and any(name in vars(other) for other in theirs):
                    names.add(name)
    return names


def writes_of(kind: type) -> Iterator[tuple[str, str]]:
    """Yield what a class assigns to: the object as text, and the attribute."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # of a compiled class
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield ast.unparse(node.value), node.attr


def inherited_writes(kinds: Iterable[type]) -> set[str]:
    """Return the attributes of other libraries' classes, and of objects in them, that classes derived from them set or
    replace by a property."""
    names = set[str]()
    for kind in kinds:
        ours = [base for base in kind.__mro__ if base.__module__.startswith(("stages.", __name__))]
        theirs = [
            base
            for base in kind.__mro__
            if base not in ours and base.__module__.split(".")[0] not in sys.stdlib_module_names
        ]
        attributes = {name for base in theirs for name in vars(base)}
        for base in theirs:
            attributes |= {name for owner, name in writes_of(base) if owner == "self"}
        for base in ours:
            for owner, name in writes_of(base):
                is_inherited = owner == "self" and name in attributes
                of_inherited = owner.startswith("self.") and owner.split(".")[1] in attributes
                if is_inherited or of_inherited:
                    names.add(name)
            names |= {name for name in vars(base).keys() & attributes if is_property(base, name)}
    return names - SETTABLE


def is_property(kind: type, name: str) -> bool:
    return isinstance(vars(kind)[name], property)


def own_uses_of(trainer: object) -> set[str]:
    """Return the private attributes of TRL's trainer that our trainers read or set as their own."""
    names = set[str]()
    for path in SOURCES:
        if path.parent.name not in ("objectives", "training"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names |= {node.attr} & vars(trainer).keys()
    return {name for name in names if private(name)}


@pytest.mark.extended
def test_every_seam_is_on_the_page_and_they_are_few(parts: Parts) -> None:
    found = overridden() | own_uses_of(parts.trl_trainer()) | inherited_writes(inherited())
    for path in SOURCES:
        found |= set(seams_of(ast.parse(path.read_text())))
    assert found == set(ROW.findall(PAGE.read_text(encoding="utf-8")))
    assert len(found) <= MOST


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import hydra._internal.utils", ["hydra._internal.utils"]),
        ("from transformers import _something", ["transformers._something"]),
        ("trainer._memory_tracker.stop()", ["_memory_tracker"]),
        ("super()._save_checkpoint(model)", ["_save_checkpoint"]),
        ("import yaml\nyaml.SafeDumper = yaml.CSafeDumper", ["SafeDumper"]),
        ("from trl import DPOTrainer\nDPOTrainer.log = print", ["log"]),
        ("model.is_quantized = False", ["is_quantized"]),
        ("del model.config.quantization_config", ["quantization_config"]),
        ("setattr(model, name, value)", ["setattr(model, name, value)"]),
        ("patch.object(fsdp, 'fully_shard', shard)", ["fully_shard"]),
        ("patch.multiple(dpo_trainer, hash_module=None)", ["hash_module"]),
        ("import os\nos.environ |= {}\nself._own = model.config.name_or_path", []),
    ],
)
def test_the_scan_sees(line: str, names: list[str]) -> None:
    assert list(seams_of(ast.parse(line))) == names


class Theirs(Trainer):
    """A trainer that sets an attribute which it inherits, one in such an object, and one of its own, and that replaces
    one by a property."""

    def change(self) -> None:
        self.label_smoother = None
        self.args.warmup_steps = 3
        self.args.train_batch = 3
        self.of_ours = 3

    @property
    def is_in_train(self) -> bool:
        return True


def test_the_scan_sees_writes_to_what_is_inherited() -> None:
    written = {"label_smoother", "warmup_steps", "train_batch"}
    assert inherited_writes([Theirs]) == {*written, "is_in_train"}
