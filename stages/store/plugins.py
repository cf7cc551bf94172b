"""Parts that a word of the configuration names (`label.labeler=verifier`), and parts of the user's own.

A folder's words are the names of its files: those that define a class of the folder's kind (`Labeler`). They are found
without being imported, so that a wrong word is told at once. A part of the user's own is a Python file outside the
project; the store keeps its bytes under their SHA-256, and those are what is run.
"""

import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.store import safe_files

Kind = TypeVar("Kind")
COPY = "own.py"  # of the user's file, in the node
MAX_BYTES = 1 << 24  # bytes of a user's file


def plugin_words(package: str, kind: str) -> list[str]:
    """The files of a room that define a `kind`: `words("labelers", "Labeler")`."""
    derived = re.compile(rf"^class \w+\((?:.*\W)?{kind}\W", re.MULTILINE)
    return [
        path.stem
        for path in sorted((ROOT / "stages" / package).glob("*.py"))
        if derived.search(path.read_text(encoding="utf-8"))
    ]


def family_names() -> list[str]:
    """The task families of the house: `data.tasks.families` may name them."""
    decorated = re.compile(r"^@family\(.*?^def (\w+)", re.MULTILINE | re.DOTALL)
    folder = ROOT / "stages" / "tasks" / "families"
    return sorted(name for path in folder.glob("*.py") for name in decorated.findall(path.read_text(encoding="utf-8")))


def template_names() -> list[str]:
    """The chat templates that `sft.template.kind` may name."""
    return sorted(path.stem for path in (ROOT / "stages" / "models" / "templates").glob("*.jinja"))


def label_task_names() -> list[str]:
    """The tasks that `task` of a source may name, to phrase a labelled set as instructions."""
    return sorted(path.stem for path in (ROOT / "stages" / "formats" / "tasks").glob("*.yaml"))


def load_class(package: str, word: str, kind: type[Kind]) -> type[Kind]:
    """The class of this kind in a room's file."""
    module = importlib.import_module(f"stages.{package}.{word}")
    [plugin_class] = [c for c in vars(module).values() if is_defined_in(c, module.__name__) and issubclass(c, kind)]
    return plugin_class  # type: ignore[no-any-return]


def is_defined_in(value: Any, module: str) -> bool:
    return isinstance(value, type) and value.__module__ == module


def user_path(typed: str) -> Path:
    """Return a path with `~` expanded. The home of a user whom this machine does not know stays as it is typed."""
    return Path(os.path.expanduser(typed))


def read_python(own: Own, key: str) -> bytes:
    """Return the bytes of the user's file. Nothing of it is run.

    Raises:
        UserError: where it is not there, or no Python.
    """
    file = user_path(str(own.file))
    if not own.name:
        raise UserError(f"{key}.name: which of the file's classes or functions is it?")
    try:
        if not file.is_file():
            raise UserError(f"{key}.file={own.file}: no such file, or no file that can be read.")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise UserError(f"{key}.file={own.file}: {size} bytes are no Python file.")
        content = file.read_bytes()
        compile(content, str(file), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{key}.file={own.file} cannot be read as Python: {error}") from error
    except OSError as error:
        raise UserError(f"{key}.file={own.file!s:.100}: {error.strerror}.") from error
    return content


def copy_file(content: bytes, folder: Path, file: Path) -> tuple[Path, str]:
    """A copy of a file in a folder named by the SHA-256 of its bytes, and that digest: the file may be worked on. In a
    store that may only be read, the file itself: nothing can be built from it there."""
    digest = hashlib.sha256(content).hexdigest()
    copy = folder / digest / file.name
    is_copied = copy.exists() and copy.read_bytes() == content
    return (copy if is_copied or safe_files.write_if_allowed(copy, content) else file), digest


def run_file(own: Own, key: str, node: Path) -> Any:
    """What `own.name` names in the kept file, whose bytes go into the node as `own.py`.

    Raises:
        UserError: where the bytes are not those of the fingerprint, the file fails, or holds no such name.
    """
    copy_path = Path(str(own.file))
    content = copy_path.read_bytes()
    digest = copy_path.parent.name
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{key}: {copy_path} was changed after it was kept. Run the command again.")
    node_copy = node / COPY
    node_copy.write_bytes(content)
    module = ModuleType(f"own_{digest[:12]}")
    module.__file__ = str(node_copy)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    with explain_errors(own, key, node):
        exec(compile(content, str(node_copy), "exec"), vars(module))
    if own.name not in vars(module):
        raise undefined_error(own, key)
    return vars(module)[own.name]


def load_subclass(own: Own, key: str, node: Path, kind: type[Kind]) -> type[Kind]:
    """The user's class, which must be a whole `kind`.

    Raises:
        UserError: where it is none, or lacks something of it.
    """
    user_class = run_file(own, key, node)
    if not isinstance(user_class, type) or not issubclass(user_class, kind):
        raise wrong_class_error(own, key, f"{kind.__module__}.{kind.__name__}")
    require_complete(
        own, key, isinstance(getattr(user_class, "name", None), str), getattr(user_class, "__abstractmethods__", ())
    )
    return user_class


def undefined_error(own: Own, key: str) -> UserError:
    return UserError(f"{key}.name={own.name}: the file defines no such name.")


def wrong_class_error(own: Own, key: str, kind: str) -> UserError:
    return UserError(f"{key}.name={own.name} must be a class derived from {kind}.")


def require_complete(own: Own, key: str, has_name: bool, missing_methods: Iterable[str]) -> None:
    """Raise UserError for a class without a name of its own, or without methods of its kind."""
    if not has_name:
        raise UserError(f'{key}.name={own.name}: the class has no name = "…", which stands beside what it makes.')
    if missing_methods := sorted(missing_methods):
        raise UserError(f"{key}.name={own.name} lacks {', '.join(missing_methods)}.")


def create_instance(own: Own, key: str, node: Path, kind: type[Kind]) -> Kind:
    """An object of the user's class, made with its options.

    Raises:
        UserError: where it is no `kind`, or its options do not fit.
    """
    user_class = load_subclass(own, key, node, kind)
    require_options(own, key, inspect.signature(user_class))
    with explain_errors(own, key, node):
        return user_class(**own.options)


def require_options(own: Own, key: str, signature: inspect.Signature, *arguments: Any) -> None:
    """Raise UserError where the options are none that a function takes beside what it is given."""
    try:
        signature.bind(*arguments, **own.options)
    except TypeError as error:
        raise UserError(f"{key}.options={own.options}: {own.name} takes others ({error}).") from error


@contextmanager
def explain_errors(own: Own, key: str, node: Path) -> Iterator[None]:
    """Around the use of a part: where it is the user's, errors are theirs, told with the key and the line in the file.
    One that ends the process is an error too."""
    try:
        yield
    except UserError as error:
        if not own or str(error).startswith(key):
            raise
        raise UserError(f"{key}: {error}") from error
    except (Exception, SystemExit) as error:
        if not own or isinstance(error, MemoryError):
            raise
        line = line_of(error, node / COPY)
        where = f"line {line}: " if line else "what it gives cannot be used: "
        raise UserError(f"{key}: {where}{type(error).__name__}: {' '.join(str(error).split())}") from error


def line_of(error: BaseException, file: Path) -> int | None:
    """The last line of a file on the way to where an error was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return lines[-1] if lines else None
