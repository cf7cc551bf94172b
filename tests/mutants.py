"""Print the random faults that a room's own tests do not notice: `python -m tests.mutants ROOM [SEED] [--count=N]`.

A mutant is the tree with one change in `stages/ROOM`: another operator, a number plus or minus one, a negated condition,
a default in place of a result, or a dropped statement. No change is only in a message or a log. Each mutant is tried in
a temporary copy of the tree by `tests/ROOM`: first the tests of `make test`, then the extended ones. Tests of the built
chain are left out, since each mutant would build the chain again. A mutant that fails no test survives, and is printed
with its file, line and change. The same seed and tree give the same mutants.

Importing torch takes longer than the tests of most rooms. This process therefore imports the libraries that the tests
load, and forks for every mutant. It imports nothing of ours.
"""

import argparse
import ast
import contextlib
import difflib
import gc
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("stages", "tests", "run", "__main__")
NOT_COPIED = (".git", ".venv*", "outputs", "site", ".*cache", "__pycache__")
CHAINS = {"built", "tracked"}  # fixtures that run a command for half a minute
MEMORY = 8 * 2**30  # bytes that a mutant may allocate
PATIENCE = 10  # times as long as the tests take without a mutant
LOGGING = {"debug", "info", "warning", "error", "exception", "warn", "print"}
# A change of what these end or delete may harm the machine.
DANGEROUS = {"kill", "killpg", "rmtree"}
MESSAGES = ("_message", "_messages", "_error", "__repr__")

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
TYPES_WITH_DEFAULT = {"bool", "int", "float", "str", "list", "dict", "set", "tuple", "frozenset"}


@dataclass(frozen=True)
class Mutant:
    path: Path  # within the tree
    line: int
    source: str
    original_line: str
    diff: list[str]

    def __str__(self) -> str:
        return "\n".join([f"{self.path}:{self.line}: {self.original_line}", *self.diff])


def draw_mutants(room: str, seed: str, count: int) -> list[Mutant]:
    """Return random mutants of a room, in the order of their files and lines."""
    changes = list[tuple[Path, int]]()
    for file in sorted(ROOT.joinpath("stages", room).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        changes += [(file, number) for number, _ in enumerate(changes_of(tree))]
    drawn = random.Random(f"{seed}/{room}").sample(changes, min(count, len(changes)))
    return [mutant_of(file, number) for file, number in sorted(drawn)]


def mutant_of(file: Path, number: int) -> Mutant:
    """Return a file with one of its changes."""
    original = file.read_text(encoding="utf-8")
    tree = ast.parse(original)
    node, replacement = next(itertools.islice(changes_of(tree), number, None))
    before = ast.unparse(node).splitlines()
    after = ast.unparse(replacement).splitlines()
    diff = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    line = line_of(node)
    source = ast.unparse(Replacing(node, replacement).visit(tree))
    original_line = original.splitlines()[line - 1].strip()
    return Mutant(file.relative_to(ROOT), line, source, original_line, diff)


def line_of(node: ast.AST) -> int:
    """Return a node's line. A comprehension has the line of its target."""
    return node.target.lineno if isinstance(node, ast.comprehension) else node.lineno


class Replacing(ast.NodeTransformer):
    """Replace one node of a syntax tree."""

    def __init__(self, node: ast.AST, replacement: ast.AST) -> None:
        self.node = node
        self.replacement = replacement

    def visit(self, node: ast.AST) -> ast.AST:
        return self.replacement if node is self.node else self.generic_visit(node)


def changes_of(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """List each node that may change, with what may replace it."""
    defaults = default_results(tree)
    for node in code_nodes(tree):
        for replacement in replacements(node):
            yield node, replacement
        if node in defaults:
            yield node, ast.Return(defaults[node])


def code_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """List the nodes that decide what a program does, in the order of the source."""
    yield node
    skipped = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    skipped += getattr(node, "decorator_list", [])
    if isinstance(node, ast.Raise):
        skipped += [node.exc]
    for child in ast.iter_child_nodes(node):
        if child not in skipped and not is_exempt(child):
            yield from code_nodes(child)


def is_exempt(node: ast.AST) -> bool:
    """Return True for a docstring, a message, a call of the log, and a call that may harm the machine."""
    match node:
        case ast.JoinedStr() | ast.Expr(ast.Constant()):
            return True
        case ast.Expr(ast.Call() as call):
            return is_exempt(call)
        case ast.Call():
            name = called_name(node)
            return name in LOGGING | DANGEROUS or name.endswith("Error")
        case ast.FunctionDef(name):
            return name.endswith(MESSAGES)
    return False


def called_name(call: ast.Call) -> str:
    """Return the last part of a called name: `info` for `log.info(…)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def default_results(tree: ast.Module) -> dict[ast.AST, ast.expr]:
    """Return by return statement the empty value of its function's type: `list()`, or None where a type has none."""
    defaults = dict[ast.AST, ast.expr]()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        # `list` of list[str]
        annotation = getattr(function.returns, "value", function.returns)
        name = getattr(annotation, "id", "")
        has_default = name in TYPES_WITH_DEFAULT
        default = ast.Call(ast.Name(name), [], []) if has_default else ast.Constant(None)
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None):
                defaults[node] = default
    return defaults


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """List what may replace a node."""
    match node:
        case ast.Compare(left, operators, comparators):
            for place, operator in enumerate(operators):
                for other in OPERATORS[type(operator)]:
                    changed = [*operators[:place], other(), *operators[place + 1 :]]
                    yield ast.Compare(left, changed, comparators)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(OPERATORS[type(operator)][0](), values)
        case ast.BinOp(left, operator, right):
            for other in OPERATORS.get(type(operator), ()):
                yield ast.BinOp(left, other(), right)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.comprehension(target, iterated, conditions):
            if conditions:
                yield ast.comprehension(target, iterated, [], node.is_async)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Call(ast.Name(name), arguments, keywords) if name in FUNCTIONS:
            yield ast.Call(ast.Name(FUNCTIONS[name]), arguments, keywords)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()


class OwnTests:
    """The plugin that leaves out tests of the built chain, and sorts the tests: those that name the changed module
    first, extended ones last."""

    def __init__(self, module: str) -> None:
        self.module = module

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if self.is_run(item)), key=self.order)

    def is_run(self, item: pytest.Item) -> bool:
        return not CHAINS.intersection(getattr(item, "fixturenames", ()))

    def order(self, item: pytest.Item) -> tuple[bool, bool]:
        is_extended = item.get_closest_marker("extended") is not None
        return is_extended, self.module not in item.path.read_text(encoding="utf-8")


class Trial:
    """A temporary copy of the tree, in which a room's tests run in processes of their own."""

    def __init__(self, folder: Path, room: str) -> None:
        self.tree = folder / "tree"
        self.log = folder / "log"
        self.state = folder / "state.json"
        self.room = room
        not_copied = shutil.ignore_patterns(*NOT_COPIED)
        shutil.copytree(ROOT, self.tree, symlinks=True, ignore=not_copied)

    def load_libraries(self) -> None:
        """Import the libraries that the tests load, in their environment."""
        self.passes(limit=None)
        state = json.loads(self.state.read_text(encoding="utf-8"))
        os.environ |= state["environment"]
        for name in state["modules"]:
            # parts of a library may need what a test has prepared
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()

    def kills(self, mutant: Mutant, limit: float) -> bool:
        """Return True if a test fails on a mutant, or does not end within a limit of seconds."""
        changed = self.tree / mutant.path
        changed.write_text(mutant.source, encoding="utf-8")
        try:
            return not self.passes(limit, ".".join(mutant.path.with_suffix("").parts))
        finally:
            # with the time of the original, which decides whether the compiled file is used
            shutil.copy2(ROOT / mutant.path, changed)

    def passes(self, limit: float | None, module: str = "") -> bool:
        """Return True if all tests pass within a limit of seconds."""
        child = os.fork()
        if not child:
            self.run_tests(module)
        began = time.monotonic()
        status = None
        try:
            while status is None and (limit is None or time.monotonic() < began + limit):
                time.sleep(0.02)
                ended, code = os.waitpid(child, os.WNOHANG)
                if ended:
                    status = code
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # with what the tests have left
        if status is None:
            os.waitpid(child, 0)
        return status == 0

    def run_tests(self, module: str) -> None:
        """Run the tests in this process, which then ends."""
        status = 1
        try:
            self.enter(keeps_compiled_files=not module)
            temporary = self.tree.with_name("temporary")
            options = ["-x", "-p", "no:cacheprovider", f"--basetemp={temporary}"]
            status = pytest.main([*options, f"tests/{self.room}"], plugins=[OwnTests(module)])
            libraries = [name for name in sys.modules if not is_ours(name)]
            environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
            state = {"modules": libraries, "environment": environment}
            self.state.write_text(json.dumps(state), encoding="utf-8")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def enter(self, keeps_compiled_files: bool) -> None:
        """Make this process one that starts in the copied tree, with a log and limits of its own."""
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log, stream.fileno())
        os.chdir(self.tree)
        sys.path[0] = str(self.tree)
        for name in [name for name in sys.modules if is_ours(name)]:
            del sys.modules[name]
        if not keeps_compiled_files:
            # the compiled file of a mutant could be taken for that of another one
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("room", help="a folder of stages/")
    parser.add_argument("seed", nargs="?", default="0")
    parser.add_argument("--count", type=int, default=15, help="how many mutants (default: 15)")
    arguments = parser.parse_args()
    mutants = draw_mutants(arguments.room, arguments.seed, arguments.count)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), arguments.room)
        trial.load_libraries()
        began = time.monotonic()
        if not trial.passes(limit=None):
            sys.stdout.write(trial.log.read_text(encoding="utf-8", errors="replace"))
            return 2
        limit = 60 + PATIENCE * (time.monotonic() - began)
        for mutant in mutants:
            if trial.kills(mutant, limit):
                continue
            survivors += 1
            sys.stdout.write(f"{mutant}\n")
            sys.stdout.flush()
    killed = len(mutants) - survivors
    sys.stdout.write(f"{killed} killed, {survivors} survived of {len(mutants)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
