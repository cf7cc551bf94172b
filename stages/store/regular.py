"""Files that we append to, opened so that nothing else can stand in their place."""

import errno
import os
import stat
from pathlib import Path

from stages.config.errors import UserError

KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
ELSE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # how the kernel refuses a link, a folder, a FIFO or socket


class NotRegular(UserError):
    """Something else stands where a file of ours belongs."""

    def __init__(self, path: Path):
        kind = KINDS.get(stat.S_IFMT(os.lstat(path).st_mode), "not a regular file")
        super().__init__(f"{path} is {kind}; a regular file belongs there. Move it away, and run the command again.")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file. Neither a link is followed, nor does a FIFO keep the caller waiting.

    Raises:
        NotRegular: for a link, a folder, a FIFO, a socket or a device.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in ELSE:
            raise NotRegular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(path)
    return descriptor
