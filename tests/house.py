"""Print how much a reader has to take in: `python -m tests.house`.

It runs `stage=dpo recipe=tiny` in a store that has the inputs, and counts our own functions and files that the run calls, and the
frames of ours above the first loss. Of the source it counts imports of extras outside them, and expressions and
statements (without docstrings) of the extras, of the services that the core needs, and of the core. Nothing enforces
these figures."""

import ast
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType

from stages.config.installation import ROOT
from tests.helpers import TINY, inside

STAGES = ROOT / "stages"
EXTRAS = STAGES / "extras"
SERVICES = ("endpoints", "formats", "hardware", "launch", "preflight", "tasks", "tracking")
LOSS = "compute_loss"  # TRL's name of the method


class CalledFunctions:
    """The functions of `stages/` that are called, and our frames above the first loss."""

    def __init__(self) -> None:
        self.functions = set[CodeType]()
        self.frames_above_loss = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not is_ours(code):
            return
        is_named = not code.co_name.startswith("<")
        if is_named:
            self.functions.add(code)
        if code.co_name == LOSS and not self.frames_above_loss:
            self.frames_above_loss = count_frames(frame.f_back)

    @property
    def files(self) -> set[str]:
        """The files of the functions."""
        return {code.co_filename for code in self.functions}


def is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(f"{STAGES}/")


def count_frames(frame: FrameType | None) -> int:
    """Return the number of frames of ours from this one up."""
    count = 0
    while frame:
        count += is_ours(frame.f_code)
        frame = frame.f_back
    return count


def call_functions() -> CalledFunctions:
    """Run DPO of the tiny chain under a profiler."""
    called = CalledFunctions()
    with tempfile.TemporaryDirectory() as folder:
        run(folder, "reference")
        sys.setprofile(called)
        try:
            run(folder, "dpo")
        finally:
            sys.setprofile(None)
    return called


def run(folder: str, stage: str) -> None:
    ran = inside(*TINY, f"stage={stage}", f"outputs={folder}")
    assert ran.returncode == 0, ran.stderr


def count_nodes(folder: Path) -> int:
    """Return the number of expressions and statements in a folder's Python files, without docstrings."""
    count = 0
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        count += sum(isinstance(node, ast.expr | ast.stmt) for node in ast.walk(tree))
        count -= 2 * sum(has_docstring(node) for node in ast.walk(tree))  # a statement and its text
    return count


def has_docstring(node: ast.AST) -> bool:
    takes_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return takes_one and ast.get_docstring(node) is not None


def imports_of_extras() -> list[str]:
    """Return the imports of extras that stand outside them."""
    found = list[str]()
    for file in STAGES.rglob("*.py"):
        if file.is_relative_to(EXTRAS):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stages.extras."):
                found.append(f"{file.relative_to(ROOT)}: {node.module}")
    return found


def main() -> None:
    """Print the figures."""
    called = call_functions()
    nodes = count_nodes(STAGES)
    of_extras = count_nodes(EXTRAS)
    of_services = sum(count_nodes(STAGES / name) for name in SERVICES)
    rows = {
        "functions of stage=dpo recipe=tiny": len(called.functions),
        "files of stage=dpo recipe=tiny": len(called.files),
        "own frames above the first loss": called.frames_above_loss,
        "imports of extras outside them": len(imports_of_extras()),
        "expressions and statements of extras": of_extras,
        f"of services ({', '.join(SERVICES)})": of_services,
        "of the core and other features": nodes - of_extras - of_services,
    }
    for name, count in rows.items():
        sys.stdout.write(f"{count:>9,}  {name}\n")


if __name__ == "__main__":
    main()
