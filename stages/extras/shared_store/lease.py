"""The lease of a node that a machine builds: an object in the remote, which the holder renews. A lease saves work, and
is never the truth: the manifest that is published first counts.

Clocks of machines differ. So a lease has expired when a waiting machine has seen no renewal for SECONDS."""

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from stages.config.errors import UserError
from stages.extras.shared_store.remote import Remote
from stages.store.allowance import Allowance

log = logging.getLogger(__name__)

# without a renewal: then others take the lease. The holder renews it three times as often
SECONDS = 60.0


@contextmanager
def hold_lease(
    remote: Remote,
    name: str,
    is_published: Callable[[], bool],
    allowance: Allowance | None = None,
) -> Iterator[None]:
    """Wait for a lease and hold it, or stop if another machine has published. Raise RemoteError without a remote, and
    LimitReached if the time of `allowance` is up first."""
    holder = {"token": uuid.uuid4().hex, "host": socket.gethostname()}
    if not take(remote, f"leases/{name}", holder, is_published, allowance or Allowance()):
        yield
        return
    stop = threading.Event()
    renewal = threading.Thread(
        target=renew, args=(remote, f"leases/{name}", holder, stop), daemon=True
    )
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join(SECONDS / 6)  # a remote that is away delays nothing: the lease expires


def take(
    remote: Remote,
    name: str,
    holder: dict[str, str],
    is_published: Callable[[], bool],
    allowance: Allowance,
) -> bool:
    """Return True when this machine has taken the lease, or False when the node is published."""
    seen, seen_at = b"", time.monotonic()
    while True:
        current = remote.get(name)
        if current and current[0] != seen:
            if not seen:
                log.info(
                    "%s is being built on %s. This command waits for it.", name, host_of(current[0])
                )
            seen, seen_at = current[0], time.monotonic()
        expired = current is not None and time.monotonic() - seen_at > SECONDS
        if (current is None or expired) and remote.put(
            name, renewed(holder), current and current[1]
        ):
            return True
        if is_published():
            return False
        allowance.stop_if_late(f"while another machine was building {name.removeprefix('leases/')}")
        time.sleep(SECONDS / 12)


def renew(remote: Remote, name: str, holder: dict[str, str], stop: threading.Event) -> None:
    """Renew a lease until `stop`, then delete it. A lease that another machine has taken is left alone."""
    while True:
        ended = stop.wait(SECONDS / 3)
        with suppress(UserError):  # the remote may answer the next time
            current = remote.get(name)
            if current is None or holder["token"].encode() not in current[0]:
                return
            if ended:
                return remote.delete([name])
            remote.put(name, renewed(holder), current[1])
        if ended:
            return


def renewed(holder: dict[str, str]) -> bytes:
    return json.dumps({**holder, "expires": time.time() + SECONDS}).encode()


def host_of(content: bytes) -> str:
    try:
        return str(json.loads(content)["host"])[:100]
    except (ValueError, TypeError, LookupError):
        return "another machine"
