"""This module holds what every test stands on: the watch over the log, and the reasons to skip.

- A record of WARNING or above from the `torrentfs` logger fails the test that caused it, unless the test says
  that it expects it: `@pytest.mark.warns(r"refused: .*too long")`. Logs of child processes are not seen.
- `@pytest.mark.root`, `@pytest.mark.fuse` and `@pytest.mark.needs("nginx")` skip where root, FUSE or a
  program is missing. Under CI=true such a skip is a failure: a test that never runs guards nothing.

Fixtures of one area live beside its tests.
"""

import logging
import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
# Debian keeps servers and network tools out of a plain user's PATH.
PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class Watch(logging.Handler):
    """Keep what the `torrentfs` logger warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def watched(item: pytest.Item) -> Iterator[None]:
    """Fail *item* if anything that it did not expect is warned of inside."""
    watch = Watch()
    logger = logging.getLogger("torrentfs")
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)
    expected = [pattern for mark in item.iter_markers("warns") for pattern in mark.args]
    surprises = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for record in watch.records
        if not any(re.search(pattern, record.getMessage()) for pattern in expected)
    ]
    if surprises:
        pytest.fail(
            "unexpected in the log (expected ones: pytest.mark.warns):\n" + "\n".join(surprises),
            pytrace=False,
        )


def reason_to_skip(item: pytest.Item) -> str | None:
    """Say what *item* needs that is not here."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "needs root"
    if item.get_closest_marker("fuse"):
        if not Path("/dev/fuse").exists():
            return "needs FUSE: there is no /dev/fuse"
        if shutil.which("fusermount3", path=PROGRAM_PATH) is None:
            return "needs fusermount3, which make setup installs"
    for mark in item.iter_markers("needs"):
        for program in mark.args:
            if shutil.which(program, path=PROGRAM_PATH) is None:
                return f"needs {program}, which make setup installs"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    if reason := reason_to_skip(item):
        if IN_CI:
            pytest.fail(f"skipped, which CI does not accept: {reason}", pytrace=False)
        pytest.skip(reason)
    with watched(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with watched(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    with watched(item):
        return (yield)
