"""The place of a store that machines share (`store.remote`): an object store through obstore, or a shared folder.

Credentials come from the environment, as the cloud's own tools read them, and never from a setting."""

import logging
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import filelock

from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.store import locks, safe_files
from stages.store.sealed_json import sync

log = logging.getLogger(__name__)

T = TypeVar("T")
SCHEMES = ("s3", "gs", "az")
CHUNK = 8 << 20  # bytes of one request, so that a slow line finishes each request within its timeout
MOST_PARTS = 9_000  # S3 accepts 10,000 parts of an upload


class RemoteError(UserError):
    """The error for a remote that cannot be read or written."""


class Remote(ABC):
    """Objects by name. A version identifies one content of an object for `put`. Methods raise RemoteError if the
    remote cannot be reached or refuses the credentials."""

    def __init__(self, url: str):
        self.url = url

    @abstractmethod
    def get(self, name: str) -> tuple[bytes, Any] | None:
        """Return the content and the version of a small object, or None if the object does not exist."""

    @abstractmethod
    def try_put(self, name: str, content: bytes, version: Any) -> bool:
        """Write a small object as `put` does. Return False if the remote refuses."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None if the object does not exist."""

    @abstractmethod
    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object, and replace an older object."""

    @abstractmethod
    def read(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from byte `start` on. Raise FileNotFoundError without the object."""

    @abstractmethod
    def list(self, prefix: str) -> dict[str, float]:
        """Return the names of the objects in a folder and below, with the age of each in seconds."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Delete objects. An object that does not exist is no error."""

    def put(self, name: str, content: bytes, version: Any = None) -> bool:
        """Write a small object if its version is still `version`; None: if the object does not exist. Return whether
        the object has this content. If the answer to a successful write is lost, the client repeats the write, and the
        remote refuses. So a refusal is followed by a get, and `content` must be unique to its writer."""
        for _ in range(3):
            if self.try_put(name, content, version):
                return True
            current = self.get(name)
            if current is not None or version is not None:
                return current is not None and current[0] == content
        return False  # others create and delete the object all the time

    def download(self, name: str, path: Path, size: int) -> None:
        """Write an object of `size` bytes to a file, after the part that an earlier attempt left there."""
        with open(path, "ab") as file:
            if file.tell() > size:
                file.truncate(0)
            while (start := file.seek(0, os.SEEK_END)) < size:
                file.write(self.read(name, start, min(CHUNK, size - start)))

    def ignores_conditions(self) -> bool:
        """Return whether the remote overwrites an object that `put` must only create."""
        return all(self.try_put("probe", uuid.uuid4().bytes, None) for _ in range(2))


class ObjectStore(Remote):
    """A bucket of S3, Google Cloud Storage or Azure, or of a server with the same interface. obstore repeats requests
    that fail for a moment."""

    def __init__(self, url: str):
        super().__init__(url)
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
        from obstore.store import from_url

        self.api, self.error, self.refusals = obstore, BaseError, (AlreadyExistsError, PreconditionError)
        retries = {"max_retries": 8, "retry_timeout": timedelta(seconds=90)}
        self.store: Any = self.attempt("open", lambda: from_url(url, retry_config=retries))  # type: ignore[call-overload]

    def attempt(self, work: str, request: Callable[[], T], repeats: int = 4) -> T:
        """Return the result of a request. Raise RemoteError, without the parameters of a signed URL, if it fails."""
        try:
            return request()
        except self.refusals:
            raise
        except self.error as error:
            if repeats and "response body error" in str(error):  # obstore does not repeat these: a 404 that was cut
                return self.attempt(work, request, repeats - 1)
            reason = re.sub(r"Error performing .*? - |\?\S+", "", str(error).split("Debug source")[0], flags=re.DOTALL)
            raise RemoteError(message(self.url, work, reason)) from error

    def get(self, name: str) -> tuple[bytes, Any] | None:
        def request() -> tuple[bytes, Any]:
            result = self.api.get(self.store, name)
            version = {"e_tag": result.meta["e_tag"], "version": result.meta["version"]}
            return bytes(result.bytes()), {key: value for key, value in version.items() if value}

        try:
            return self.attempt(f"get {name}", request)
        except FileNotFoundError:
            return None

    def try_put(self, name: str, content: bytes, version: Any) -> bool:
        try:
            put = partial(self.api.put, mode=version or "create", use_multipart=False)
            self.attempt(f"put {name}", lambda: put(self.store, name, content))
        except self.refusals:
            return False
        except FileNotFoundError as error:
            raise RemoteError(message(self.url, "write", "it does not exist")) from error
        return True

    def size(self, name: str) -> int | None:
        try:
            return self.attempt(f"look up {name}", lambda: self.api.head(self.store, name)["size"])
        except FileNotFoundError:
            return None

    def upload(self, name: str, path: Path) -> None:
        chunk = max(CHUNK, path.stat().st_size // MOST_PARTS)
        self.attempt(f"put {name}", lambda: self.api.put(self.store, name, path, chunk_size=chunk))

    def read(self, name: str, start: int, length: int) -> bytes:
        return self.attempt(
            f"get {name}", lambda: bytes(self.api.get_range(self.store, name, start=start, length=length))
        )

    def list(self, prefix: str) -> dict[str, float]:
        pages = self.attempt(f"list {prefix}", lambda: [*self.api.list(self.store, prefix)])
        return {meta["path"]: time.time() - meta["last_modified"].timestamp() for page in pages for meta in page}

    def delete(self, names: Sequence[str]) -> None:
        self.attempt("delete objects", lambda: self.api.delete(self.store, names))


class SharedFolder(Remote):
    """A folder that machines mount. A file appears there complete, by a rename or a hard link."""

    def __init__(self, url: str):
        super().__init__(url)
        self.root = Path(url)
        with self.reported("create the folder"):
            self.root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def reported(self, work: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RemoteError(message(self.url, work, str(error.strerror))) from error

    @contextmanager
    def draft(self, name: str) -> Iterator[tuple[Path, Path]]:
        """Yield the path of an object, and the path of a draft beside it, which is synced by `sync` and removed."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{uuid.uuid4().hex}.draft")
        try:
            yield path, draft
        finally:
            draft.unlink(missing_ok=True)

    def get(self, name: str) -> tuple[bytes, Any] | None:
        with self.reported(f"read {name}"):
            try:
                content = (self.root / name).read_bytes()
            except FileNotFoundError:
                return None
        return content, content

    def try_put(self, name: str, content: bytes, version: Any) -> bool:
        with self.reported(f"write {name}"), self.draft(name) as (path, draft):
            if version is None:
                draft.write_bytes(content)
                sync(draft)
                try:
                    os.link(draft, path)
                except FileExistsError:
                    return False
                return True
            lock = locks.open_lock(path.with_name(f".{path.name}.lock"))
            try:
                filelock.lock_descriptor(lock)
                current = self.get(name)
                if current is None or current[1] != version:
                    return False
                safe_files.write(path, content)
                return True
            finally:
                os.close(lock)

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def upload(self, name: str, path: Path) -> None:
        with self.reported(f"write {name}"), self.draft(name) as (target, draft):
            shutil.copyfile(path, draft)
            sync(draft)
            draft.replace(target)

    def read(self, name: str, start: int, length: int) -> bytes:
        with self.reported(f"read {name}"), open(self.root / name, "rb") as file:
            file.seek(start)
            if content := file.read(length):
                return content
        raise RemoteError(message(self.url, f"read {name}", "the file is too short"))

    def list(self, prefix: str) -> dict[str, float]:
        with self.reported(f"list {prefix}"):
            paths = [p for p in (self.root / prefix).rglob("*") if p.is_file() and not p.name.startswith(".")]
            return {str(path.relative_to(self.root)): time.time() - path.stat().st_mtime for path in paths}

    def delete(self, names: Sequence[str]) -> None:
        with self.reported("delete files"):
            for name in names:
                (self.root / name).unlink(missing_ok=True)


def message(url: str, work: str, reason: str) -> str:
    """Return the message for a remote that did not do some work."""
    why = " ".join(reason.split())[:200].rstrip(". ")
    return (
        f"store.remote={url}: cannot {work} ({why}). Check the address, the credentials in the environment and the "
        "connection, and type the same command again; or set store.remote=null."
    )


def validate_url(url: str) -> None:
    """Raise UserError for an address of an unknown kind, an address with credentials, or a missing package."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        secret = f"store.remote={parts.scheme}://…: an address holds no credentials"
        raise UserError(f"{secret}. Remove them, and set them in the environment, as AWS_ACCESS_KEY_ID.")
    if not url.startswith("/") and not (parts.scheme in SCHEMES and parts.netloc):
        raise UserError(f"store.remote={url}: type s3://BUCKET/PREFIX, gs://…, az://… or the path of a folder, /….")
    if not url.startswith("/") and find_spec("obstore") is None:
        raise UserError(f"store.remote={url} needs obstore: {install_command('remote')}, or set store.remote=null.")


def open_remote(url: str) -> Remote:
    """Return the remote at an address. Raise RemoteError if it cannot be used, and warn if it ignores conditions."""
    remote = SharedFolder(url) if url.startswith("/") else ObjectStore(url)
    if remote.ignores_conditions():
        log.warning("warning: store.remote=%s ignores conditional writes: two machines may build one node.", url)
    return remote
