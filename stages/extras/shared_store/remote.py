"""The place of a store that machines share (`store.remote`): an object store or a shared folder, through obstore.

Credentials come from the environment, as the cloud's own tools read them, and never from a setting."""

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stages.config.errors import UserError
from stages.config.installation import install_command

log = logging.getLogger(__name__)

T = TypeVar("T")
Report = Callable[[int], object]  # takes the bytes of one object that are transferred so far
SCHEMES = ("s3", "gs", "az")
# bytes of one request, so that a slow line finishes each request within its timeout
CHUNK = 8 << 20
PARTS_AT_A_TIME = 4  # of one file: parts that wait count as sent
# by obstore: a 404 that was cut, a conditional put
NOT_REPEATED = ("response body error", "kind: Timeout")
MOST_PARTS = 9_000  # S3 accepts 10,000 parts of an upload


def report_nothing(transferred: int) -> None:
    """The default of who learns of transferred bytes."""


class RemoteError(UserError):
    """The error for a remote that cannot be read or written."""


class Remote:
    """The objects by name in a folder, or in a bucket of S3, Google Cloud Storage, Azure or a server with the same
    interface. A version identifies one content of an object for `put`. obstore repeats what fails for a moment.
    `is_read_only`: it can be read, and refuses to be written.
    Methods raise RemoteError if the remote cannot be reached or refuses the credentials."""

    is_read_only = False

    def __init__(self, url: str):
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
        from obstore.store import LocalStore, from_url

        self.url, self.is_folder = url, url.startswith("/")
        self.api = obstore
        self.error = BaseError
        self.refusals = (AlreadyExistsError, PreconditionError)
        retries: Any = {"max_retries": 8, "retry_timeout": timedelta(seconds=90)}

        def opened() -> Any:
            return (
                LocalStore(url, mkdir=True)
                if self.is_folder
                else from_url(url, retry_config=retries)
            )

        self.store: Any = self.attempt("open", opened)

    def attempt(self, work: str, request: Callable[[], T], repeats: int = 4) -> T:
        """Return the result of a request. Raise RemoteError, without the parameters of a signed URL, if it fails."""
        try:
            return request()
        except (*self.refusals, FileNotFoundError):
            raise
        except (self.error, OSError) as error:
            if repeats and any(cause in str(error) for cause in NOT_REPEATED):
                return self.attempt(work, request, repeats - 1)
            reason = re.sub(
                r"Error performing .*? - |\?\S+",
                "",
                str(error).split("Debug source")[0],
                flags=re.DOTALL,
            )
            raise RemoteError(message(self.url, work, reason)) from error

    def get(self, name: str) -> tuple[bytes, Any] | None:
        """Return the content and the version of a small object, or None if the object does not exist."""

        def request() -> tuple[bytes, Any]:
            result = self.api.get(self.store, name)
            version = {"e_tag": result.meta["e_tag"], "version": result.meta["version"]}
            return bytes(result.bytes()), {key: value for key, value in version.items() if value}

        try:
            return self.attempt(f"get {name}", request)
        except FileNotFoundError:
            return None

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

    def try_put(self, name: str, content: bytes, version: Any) -> bool:
        """Write a small object as `put` does. Return False if the remote refuses."""
        mode: Any = version or "create"
        # a folder compares nothing: two machines may take one lease, and both build
        if version and self.is_folder:
            if (current := self.get(name)) is None or current[1] != version:
                return False
            mode = "overwrite"
        try:
            put = self.api.put
            self.attempt(
                f"put {name}",
                lambda: put(self.store, name, content, mode=mode, use_multipart=False),
            )
        except self.refusals:
            return False
        except FileNotFoundError as error:
            raise RemoteError(message(self.url, "write", "it does not exist")) from error
        return True

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None if the object does not exist."""
        try:
            return self.attempt(f"look up {name}", lambda: self.api.head(self.store, name)["size"])
        except FileNotFoundError:
            return None

    def upload(self, name: str, path: Path, report: Report = report_nothing) -> None:
        """Write a file as an object, and replace an older object. `report` learns how many bytes were sent."""
        size = path.stat().st_size
        chunk = max(CHUNK, size // MOST_PARTS)

        def request() -> None:
            content: Any = path if size <= chunk else read_chunks(path, chunk, report)
            self.api.put(
                self.store, name, content, chunk_size=chunk, max_concurrency=PARTS_AT_A_TIME
            )

        self.attempt(f"put {name}", request)
        report(size)

    def download(self, name: str, path: Path, size: int, report: Report = report_nothing) -> None:
        """Write an object of `size` bytes after an earlier attempt's part. `report` learns how many bytes are there.
        Raise FileNotFoundError without the object."""
        with open(path, "ab") as file:
            if file.tell() > size:
                file.truncate(0)
            while (start := file.seek(0, os.SEEK_END)) < size:
                report(start)
                read = partial(
                    self.api.get_range,
                    self.store,
                    name,
                    start=start,
                    length=min(CHUNK, size - start),
                )
                file.write(self.attempt(f"get {name}", read))
        report(size)

    def forbid_writing(self) -> None:
        """Let nothing be sent from now on."""
        self.is_read_only = True

    def require_readable(self) -> None:
        """Raise RemoteError if the names of nodes cannot be read."""
        self.attempt("list nodes", lambda: next(iter(self.api.list(self.store, "nodes")), None))

    def list(self, prefix: str) -> dict[str, float]:
        """Return the names of the objects in a folder and below, with the age of each in seconds."""
        pages = self.attempt(f"list {prefix}", lambda: [*self.api.list(self.store, prefix)])
        return {
            meta["path"]: time.time() - meta["last_modified"].timestamp()
            for page in pages
            for meta in page
        }

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects. An object that does not exist is no error."""
        with suppress(FileNotFoundError):
            self.attempt("delete objects", lambda: self.api.delete(self.store, names))


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
        raise UserError(
            f"{secret}. Remove them, and set them in the environment, as AWS_ACCESS_KEY_ID."
        )
    if not url.startswith("/") and not (parts.scheme in SCHEMES and parts.netloc):
        raise UserError(
            f"store.remote={url}: type s3://BUCKET/PREFIX, gs://…, az://… or the path of a folder, /…."
        )
    if find_spec("obstore") is None:
        raise UserError(
            f"store.remote={url} needs obstore: {install_command('remote')}, or set store.remote=null."
        )


def read_chunks(path: Path, size: int, report: Report) -> Iterator[bytes]:
    """Yield a file in chunks, and report the bytes before each."""
    with open(path, "rb") as file:
        while chunk := file.read(size):
            report(file.tell() - len(chunk))
            yield chunk


def open_remote(url: str) -> Remote:
    """Return the remote at an address. Warn if it refuses to be written, or ignores conditions. Raise RemoteError if it
    cannot be read."""
    remote = Remote(url)
    try:
        # the second must be refused
        ignores_conditions = all(
            remote.try_put("probe", uuid.uuid4().bytes, None) for _ in range(2)
        )
    except RemoteError as refusal:
        remote.require_readable()
        remote.forbid_writing()
        log.warning(
            "warning: store.remote=%s can be read, but not written. Nothing is sent to it. %s",
            url,
            refusal,
        )
        return remote
    if ignores_conditions:
        log.warning(
            "warning: store.remote=%s ignores conditional writes: two machines may build one node.",
            url,
        )
    return remote
