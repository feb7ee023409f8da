"""A package larger than small caches, and jobs that read it from the disk, not from the page cache."""

import hashlib
import random
import subprocess

from daemons import DEADLINE_S, Site

from torrentfs.repository.publisher import publish

FILES, LENGTH = 48, 1_500_000

READER = """
import hashlib, os, sys
for name in sorted(os.listdir(sys.argv[1])):
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        print(hashlib.sha256(file.read()).hexdigest(), flush=True)
"""
"""Reads files one by one, none from the page cache."""


def publish_big(site: Site) -> None:
    """Publish BIG/v1."""
    source = site.directory / "big"
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:02}").write_bytes(random.Random(number).randbytes(LENGTH))
    publish(site.repository, source, "BIG/v1", progress=None)


def digests() -> list[str]:
    """Return what a job must print."""
    return [hashlib.sha256(random.Random(n).randbytes(LENGTH)).hexdigest() for n in range(FILES)]


def job(site: Site) -> "subprocess.Popen[str]":
    """Start one."""
    words = ["python3", "-c", READER, str(site.mountpoint / "BIG/v1")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def run(site: Site) -> list[str]:
    """Return what a job printed."""
    told, _ = job(site).communicate(timeout=DEADLINE_S)
    return told.split()
