"""Every place where this code leans on a private part of another library is on one page, and they are few.

Such a place is found in the sources: a private name, a patch, or an assignment to an object of theirs."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from stages.config.installation import ROOT

PAGE = ROOT / "docs" / "reference" / "private-apis.md"
ROW = re.compile(r"^\| `([^`]+)`", re.MULTILINE)
SOURCES = sorted((ROOT / "stages").rglob("*.py"))
MOST = 25
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


@pytest.mark.extended
def test_every_seam_is_on_the_page_and_they_are_few() -> None:
    seams = {seam for path in SOURCES for seam in seams_of(ast.parse(path.read_text()))}
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert seams <= {*rows}
    assert len(rows) <= MOST
