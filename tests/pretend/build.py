"""Compile the pretended accelerator, once per machine and version of torch."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_name("device.cpp")
FLAGS = ("-std=c++20", "-O1", "-g0", "-fPIC", "-shared")


def compiler() -> str | None:
    """Return the C++ compiler, `CXX` or the machine's own; None without one."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return next(filter(None, map(shutil.which, names)), None)


def why_not() -> str | None:
    """Return why this machine cannot have the pretended accelerator; None if it can."""
    if sys.platform != "linux":
        return "the pretended accelerator is built on Linux only"
    return (
        None
        if library().exists() or compiler()
        else "no C++ compiler is installed to build the accelerator"
    )


def library() -> Path:
    """Return the library's place in the user's cache, by its source and torch's version."""
    digest = hashlib.sha256(
        SOURCE.read_bytes() + " ".join((*FLAGS, torch.__version__)).encode()
    ).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "plumbline" / "pretend" / f"{digest[:16]}.so"


def build() -> Path:
    """Return the compiled library. Compiling takes about 20 CPU-seconds; other processes wait for it.

    Raises:
        RuntimeError: if the compiler refuses the source, with its messages.
    """
    target = library()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            part = target.with_suffix(".part")
            folders = (
                *(f"-I{path}" for path in include_paths()),
                *(f"-L{path}" for path in library_paths()),
            )
            line = [
                str(compiler()),
                *FLAGS,
                *folders,
                str(SOURCE),
                "-o",
                str(part),
                "-ltorch",
                "-ltorch_cpu",
                "-lc10",
            ]
            ran = subprocess.run(line, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise RuntimeError(ran.stderr)
            part.rename(target)
    return target
