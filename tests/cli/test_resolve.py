"""`resolve` is the one place that assigns to a block of the configuration."""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

from stages.cli import resolve as resolving
from stages.config.installation import ROOT
from stages.store.node import Node

RESOLVE = Path(str(resolving.__file__))
# attributes of a trainer, a labeler or a sampler that hold a block
HOLDING_BLOCKS = ("cfg", "block")
# calls that give the same objects: of a mapping of blocks, and of a block or a node
METHODS = ("values", "items", "get")
FUNCTIONS = ("vars", "enumerate", "list", "runtime_of")


def block_classes() -> set[str]:
    """Return the names of the dataclasses of the configuration."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith("stages.config.blocks.") or name == "stages.config.schema"
    ]
    names = {
        kind.__name__
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and is_dataclass(kind)
    }
    return names | {Node.__name__}


BLOCKS = block_classes()


def is_block_type(annotation: ast.AST | None) -> bool:
    """Return whether an annotation is a class of blocks, or a union with one."""
    match annotation:
        case ast.Name(id=name):
            return name in BLOCKS
        case ast.BinOp(left=left, right=right):
            return is_block_type(left) or is_block_type(right)
    return False


def is_block(expression: ast.AST | None, names: set[str]) -> bool:
    """Return whether an expression is a block, or a mapping or a list of blocks. `names`: the variables that are."""
    match expression:
        case ast.Name(id=name):
            return name in names
        case ast.Attribute(value=value, attr=name):
            return name in HOLDING_BLOCKS or is_block(value, names)
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return is_block(value, names)
        case ast.Call(func=ast.Name(id=name), args=[value, *_]):
            return name in FUNCTIONS and is_block(value, names)
        case ast.Call(func=ast.Attribute(value=value, attr=name)):
            return name in METHODS and is_block(value, names)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return any(is_block(item, names) for item in items)
        case ast.IfExp(body=first, orelse=second):
            return is_block(first, names) or is_block(second, names)
    return False


def bound_names(target: ast.AST) -> set[str]:
    """Return the variables that a target binds; none for an attribute or an item."""
    if isinstance(target, ast.Name):
        return {target.id}
    if isinstance(target, ast.Tuple | ast.List | ast.Starred):
        return {name for child in ast.iter_child_nodes(target) for name in bound_names(child)}
    return set()


def targets_of(statement: ast.AST) -> list[ast.expr]:
    match statement:
        case ast.Assign(targets=targets):
            return targets
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
            return [target]
    return []


def assignments_to_blocks(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements of a file that assign to a key of a block."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = set[str]()
        for argument in (*function.args.args, *function.args.kwonlyargs):
            if is_block_type(argument.annotation):
                names.add(argument.arg)
        statements = [*ast.walk(function)]
        for _ in range(3):  # a block may be reached over several variables
            for statement in statements:
                value = getattr(statement, "iter", None) or getattr(statement, "value", None)
                binds = isinstance(statement, ast.Assign | ast.AnnAssign | ast.For)
                if binds and is_block(value, names):
                    names = names.union(*map(bound_names, targets_of(statement)))
        for statement in statements:
            for target in targets_of(statement):
                owner = getattr(target, "value", None)
                if isinstance(target, ast.Attribute | ast.Subscript) and is_block(owner, names):
                    yield statement
            match statement:
                case ast.Call(func=ast.Name(id="setattr"), args=[owner, *_]):
                    if is_block(owner, names):
                        yield statement


def test_only_resolve_assigns_to_a_block() -> None:
    places = list[str]()
    for file in sorted((ROOT / "stages").rglob("*.py")):
        for statement in assignments_to_blocks(ast.parse(file.read_text(encoding="utf-8"))):
            if file != RESOLVE:
                places.append(f"{file.relative_to(ROOT)}: {ast.unparse(statement)}")
    assert not places


def test_the_test_sees_how_resolve_assigns() -> None:
    found = [*assignments_to_blocks(ast.parse(RESOLVE.read_text(encoding="utf-8")))]
    assigned = " ".join(ast.unparse(statement) for statement in found)
    for key in ("learning_rate", "micro_batch", "price", "precision", "template"):
        assert key in assigned
