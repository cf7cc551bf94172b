"""Plugins: classes that a word of the configuration names (`label.labeler=verifier`), and the user's own code.

The words of a package are the names of its files that define a class of one kind (`Labeler`), and those of the extras
with a file for it. The files are searched without an import, so that a wrong word is refused at once. The user's own code is a Python file outside the project.
The store keeps a copy of it under its SHA-256, and runs this copy."""

import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from stages.config.blocks.models import Own
from stages.config.errors import LimitReached, UserError
from stages.config.extras import extras_with
from stages.config.installation import ROOT
from stages.store import safe_files

Kind = TypeVar("Kind")
COPY = "own.py"  # the copy of the user's file in the node
MAX_BYTES = 1 << 24
# By package, the file of an extra that has a class for it. Of trackers, clusters and labelers the extra's name is the word
FILES_OF_EXTRAS = {
    "tracking": "tracker.py",
    "launch": "cluster.py",
    "labelers": "labeler.py",
    "store": "mirror.py",
    "pipeline": "evaluated.py",
    "commands": "forecast.py",
}


def plugin_words(package: str, kind: str) -> list[str]:
    """Return the names of a package's files that define a `kind`: `plugin_words("labelers", "Labeler")`."""
    derived = re.compile(rf"^class \w+\((?:.*\W)?{kind}\W", re.MULTILINE)
    paths = sorted((ROOT / "stages" / package).glob("*.py"))
    words = [path.stem for path in paths if derived.search(path.read_text(encoding="utf-8"))]
    return sorted([*words, *words_of_extras(package)])


def words_of_extras(package: str) -> list[str]:
    """Return the words of a package that extras add."""
    return extras_with(FILES_OF_EXTRAS[package]) if package in FILES_OF_EXTRAS else []


def label_task_names() -> list[str]:
    """Return the names of the tasks that phrase a labelled set as instructions, for `task` of a source."""
    return sorted(path.stem for path in (ROOT / "stages" / "formats" / "tasks").glob("*.yaml"))


def load_class(package: str, word: str, kind: type[Kind]) -> type[Kind]:
    """Return the class of this kind in a file of a package, or of the extra of that name."""
    place = f"{package}.{word}"
    if word in words_of_extras(package):
        place = f"extras.{word}.{Path(FILES_OF_EXTRAS[package]).stem}"
    module = importlib.import_module(f"stages.{place}")
    classes = [
        each for each in vars(module).values() if isinstance(each, type) and issubclass(each, kind)
    ]
    [plugin_class] = [each for each in classes if each.__module__ == module.__name__]
    return plugin_class


def classes_of_extras(package: str, kind: type[Kind]) -> list[type[Kind]]:
    """Return the classes of this kind that extras have for a package."""
    return [load_class(package, extra, kind) for extra in words_of_extras(package)]


def user_path(typed: str) -> Path:
    """Return a path with `~` expanded. `~NAME` stays as it is if this machine has no user NAME."""
    return Path(os.path.expanduser(typed))


def read_python(own: Own, key: str) -> bytes:
    """Return the bytes of the user's file without running it. Raise UserError if it is missing or not Python."""
    file = user_path(str(own.file))
    if not own.name:
        raise UserError(
            f"{key}.name is not set. Type {key}.name=NAME, the class or function to use from the file."
        )
    try:
        if not file.is_file():
            raise UserError(
                f"{key}.file={own.file}: there is no such regular file. Type the path of a Python file."
            )
        if (size := file.stat().st_size) > MAX_BYTES:
            raise UserError(
                f"{key}.file={own.file}: {size:,} bytes are too many for a Python file."
            )
        content = file.read_bytes()
        compile(content, str(file), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{key}.file={own.file}: the file is not valid Python: {error}") from error
    except OSError as error:
        raise UserError(f"{key}.file={own.file!s:.100}: {error.strerror}.") from error
    return content


def copy_file(content: bytes, folder: Path, file: Path) -> tuple[Path, str]:
    """Copy a file into a folder named by the SHA-256 of its bytes, so that later edits of the file have no effect.
    Return the copy and the digest. In a read-only store, return the file itself: nothing is built there."""
    digest = hashlib.sha256(content).hexdigest()
    copy = folder / digest / file.name
    is_copied = copy.exists() and copy.read_bytes() == content
    return (copy if is_copied or safe_files.write_if_allowed(copy, content) else file), digest


def run_file(own: Own, key: str, node: Path) -> Any:
    """Run the store's copy of the user's file, and return the object `own.name` from it. The node gets it as `own.py`.
    Raise UserError if the copy has changed, the file raises an error, or it does not define the name."""
    copy_path = Path(str(own.file))
    content = copy_path.read_bytes()
    digest = copy_path.parent.name
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{key}: {copy_path} has changed since it was copied. Type the same command again."
        )
    node_copy = node / COPY
    node_copy.write_bytes(content)
    module = ModuleType(f"own_{digest[:12]}")
    module.__file__ = str(node_copy)
    sys.modules[module.__name__] = module  # dataclasses and pickle look for the module there
    with explain_errors(own, key, node):
        exec(compile(content, str(node_copy), "exec"), vars(module))
    if own.name not in vars(module):
        raise undefined_error(own, key)
    return vars(module)[own.name]


def load_subclass(own: Own, key: str, node: Path, kind: type[Kind]) -> type[Kind]:
    """Return the user's class. Raise UserError unless it is derived from `kind` and has all its methods."""
    return require_subclass(own, key, run_file(own, key, node), kind)


def require_subclass(
    own: Own, key: str, user_class: Any, kind: type[Kind], or_else: str = ""
) -> type[Kind]:
    """Return the user's class. Raise UserError unless it is derived from `kind` and has all its methods. `or_else`: what
    else may have this name."""
    if not isinstance(user_class, type) or not issubclass(user_class, kind):
        base = f"{kind.__module__}.{kind.__name__}"
        raise UserError(
            f"{key}.name={own.name}: this must be a class derived from {base}{or_else}."
        )
    if not isinstance(getattr(user_class, "name", None), str):
        raise UserError(
            f'{key}.name={own.name}: the class needs an attribute name = "…", which the records state.'
        )
    if missing_methods := sorted(getattr(user_class, "__abstractmethods__", ())):
        raise UserError(
            f"{key}.name={own.name}: the class does not define {', '.join(missing_methods)}."
        )
    return user_class


def undefined_error(own: Own, key: str) -> UserError:
    return UserError(f"{key}.name={own.name}: the file does not define this name.")


def require_options(own: Own, key: str, signature: inspect.Signature, *arguments: Any) -> None:
    """Raise UserError if a function does not accept the options together with `arguments`."""
    try:
        signature.bind(*arguments, **own.options)
    except TypeError as error:
        raise UserError(
            f"{key}.options={own.options}: {own.name} does not accept them ({error})."
        ) from error


@contextmanager
def explain_errors(own: Own, key: str, node: Path) -> Iterator[None]:
    """Turn errors of the user's own code, raised inside, into UserErrors with the key and the line in the file.
    SystemExit counts as an error too. Errors of other plugins are not changed."""
    try:
        yield
    except UserError as error:
        if not own or str(error).startswith(key):
            raise
        raise UserError(f"{key}: {error}") from error
    except (Exception, SystemExit) as error:
        if not own or isinstance(error, MemoryError | LimitReached):
            raise
        line = line_of(error, node / COPY)
        where = f"line {line}: " if line else "its result cannot be used: "
        raise UserError(
            f"{key}: {where}{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def line_of(error: BaseException, file: Path) -> int | None:
    """Return the last line of a file in an error's traceback, or None if the file is not in it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == file
    ]
    return lines[-1] if lines else None
