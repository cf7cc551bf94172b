"""Fixtures of a server of S3 with faults."""

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from tests.extras.shared_store.s3 import S3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, Path]]:
    faults = tmp_path_factory.mktemp("s3") / "faults"
    arguments = [sys.executable, "-m", "tests.extras.shared_store.remote_server", str(faults)]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        assert server.stdout
        line = b""
        # moto prints a line first
        while line.count(b" ") != 1 or not line.strip().replace(b" ", b"").isdigit():
            line = server.stdout.readline()
            assert line, "the server did not start"
        port, proxy_port = map(int, line.split())
        yield port, proxy_port, faults
        server.kill()


@pytest.fixture
def s3(s3_server: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch) -> S3:
    """A new bucket of the server, for this process and its children."""
    port, proxy_port, faults = s3_server
    bucket = f"bucket-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_TIMEOUT": "3s",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = S3(f"s3://{bucket}/store", faults, environment)
    server.faults()
    return server
