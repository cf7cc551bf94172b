"""The server of S3 of the tests."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class S3:
    """A server of S3. Its processes reach it through a proxy that breaks requests as `faults` says."""

    url: str
    faults_file: Path
    environment: dict[str, str]

    def faults(self, *kinds: str, share: float = 0.0) -> None:
        self.faults_file.write_text("".join(f"{kind} {share}\n" for kind in kinds))
