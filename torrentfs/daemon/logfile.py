"""This module gives a daemon its log: a file of bounded length, which its standard error goes to as well."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_NAME = "torrentfs.log"
OLDER_LOGS = 3
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _LogHandler(RotatingFileHandler):
    """A rotating log that standard error follows: what a C library says before it aborts goes there too."""

    def __init__(
        self, file: Path, length_max: int, *, take_stderr: bool, opened: Callable[[int], None]
    ) -> None:
        self._take_stderr = take_stderr
        self._opened = opened
        super().__init__(
            file, maxBytes=length_max, backupCount=OLDER_LOGS, encoding="utf-8", errors="backslashreplace"
        )
        self._redirect()

    def doRollover(self) -> None:  # noqa: N802 - the library's name
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        if self.stream is not None:
            if self._take_stderr:
                os.dup2(self.stream.fileno(), 2)
            self._opened(self.stream.fileno())


def start_log(
    directory: Path, length_max: int, *, foreground: bool, opened: Callable[[int], None] = lambda _: None
) -> Path:
    """Log to a file in *directory* from now on, in the *foreground* to stderr too; return the file.

    *opened* is told the descriptor of each file that is begun.
    """
    file = directory / LOG_NAME
    handlers: list[logging.Handler] = [
        _LogHandler(file, length_max, take_stderr=not foreground, opened=opened)
    ]
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    _log_to(handlers)
    return file


def log_to_stderr() -> None:
    """Log to standard error, and to no file, from now on."""
    _log_to([logging.StreamHandler(sys.stderr)])


def _log_to(handlers: Sequence[logging.Handler]) -> None:
    logging.basicConfig(level=logging.INFO, format=FORMAT, handlers=handlers, force=True)
    # httpx writes a line per request at INFO: thousands in a cold read.
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
