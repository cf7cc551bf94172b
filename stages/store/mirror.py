"""The mirror of a store: a copy from which other machines fetch nodes instead of building them. Each kind is an extra with
a `mirror.py`. Without one, no store has a mirror."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Self

from stages.config.errors import UserError
from stages.config.schema import Config
from stages.store import plugins
from stages.store.allowance import Allowance
from stages.store.manifest import Manifest
from stages.store.node import Node

log = logging.getLogger(__name__)

Fits = Callable[[Node, Manifest], bool]


class NotSent(UserError):
    """The error at the end of a command whose results are complete here, if the mirror does not have all of them."""


class Mirror(ABC):
    """The copy of one store. `url` names it in manifests and messages.

    A run needs no mirror. While it cannot be used, the methods warn, find nothing and send nothing; `exchange` raises
    NotSent at its end. The store calls `pull` and `push` under the node's lock."""

    url: str

    @classmethod
    @abstractmethod
    def of(cls, cfg: Config) -> Self | None:
        """Return the mirror that the settings name, or None. Raise UserError for settings that cannot work."""

    @abstractmethod
    def has(self, node: Node) -> bool:
        """Return whether the mirror had the node when this command began, or has got it since. A plan asks this too."""

    @abstractmethod
    def pull(self, node: Node, folder: Path, fits: Fits) -> bool:
        """Fetch a node whose manifest `fits` into its folder, complete or not at all. Return whether it was fetched."""

    @abstractmethod
    def is_synced(self, node: Node, manifest: Manifest) -> bool:
        """Return whether the mirror is known to have this content of a node. Each command asks this of many nodes."""

    @abstractmethod
    def push(self, node: Node, folder: Path, manifest: Manifest, replace: bool) -> bool:
        """Send a published node. Return False, without sending it, if another machine has published the node from the
        same inputs with other content; `replace` sends it all the same."""

    def lease(self, node: Node, allowance: Allowance | None = None) -> AbstractContextManager[None]:
        """Return a context in which no other machine builds the node. Entering it may wait until another one has."""
        return nullcontext()

    def exchange(self) -> AbstractContextManager[None]:
        """Return the context of a build, around which calls and journals are exchanged. It ends with NotSent if
        something was not sent."""
        return nullcontext()

    @contextmanager
    def sending(self, nodes: Sequence[Node]) -> Iterator[None]:
        """Enclose the sending of all nodes of a store, for `stage=sync`. Raise UserError if nothing can be sent."""
        with self.exchange():
            yield

    def show_progress(self, manifests: Mapping[Node, Manifest]) -> AbstractContextManager[None]:
        """Return the context of the pushes of several nodes, which shows how far they are."""
        return nullcontext()

    def collect(self, needed: set[tuple[str, str]], remove: bool, kept_seconds: float) -> None:
        """List or remove, for `stage=gc`, older content that no node of `needed` needs: stages and fingerprints."""
        log.info("%s: nothing is removed there.", self.url)


def find_mirror(cfg: Config) -> Mirror | None:
    """Return the mirror that the settings name, or None."""
    for kind in plugins.classes_of_extras("store", Mirror):  # type: ignore[type-abstract]
        mirror = kind.of(cfg)
        if mirror:
            return mirror
    return None
