"""An S3 server on loopback, and the environment that leads to it and to nothing else."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_STARTED = re.compile(rb"Running on (http://127\.0\.0\.1:[0-9]+)")
# All that obstore and mpota would take credentials from.
FOREIGN = [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]


@contextmanager
def running() -> Iterator[str]:
    """The URL of a server of moto's, empty at first."""
    program = Path(sys.executable).with_name("moto_server")
    command = [str(program), "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        started: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stderr, started))
        reader.start()
        try:
            yield started.get(timeout=60)
        finally:
            process.kill()
            reader.join()


def _read(errors: IO[bytes], started: queue.Queue[str]) -> None:
    """All that the server says, so that it never waits for being read."""
    for line in errors:
        if found := _STARTED.search(line):
            started.put(found[1].decode())


def environment(url: str) -> dict[str, str]:
    """What has mpota publish there. Keys are any; all boards may read."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
    }


def make_bucket(url: str, name: str) -> None:
    """A bucket that everybody may read."""
    _put(f"{url}/{name}", {"x-amz-acl": "public-read"})


def _put(url: str, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=30):
        pass
