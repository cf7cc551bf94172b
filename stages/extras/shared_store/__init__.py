"""`store.remote`: a copy of the store in a bucket or a folder, which machines share."""

from dataclasses import dataclass


@dataclass
class SharedStore:
    """The copy of the artifact store that machines share."""

    # a copy of the artifact store that machines share: s3://BUCKET/PREFIX, gs://…, az://… or a folder, /…
    remote: str | None = None


BLOCKS = {"store": SharedStore}
