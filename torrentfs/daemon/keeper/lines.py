"""This module writes lines that nobody may be reading, and so never waits until they are."""

import os
import select
import time

LINE_MAX = 1_000
"""Characters, of up to four bytes."""


def write(descriptor: int, text: str) -> None:
    """Write *text* as a line. A pipe that is ready takes PIPE_BUF = 4096 bytes at once."""
    look = select.poll()
    look.register(descriptor, select.POLLOUT)
    try:
        if any(events & select.POLLOUT for _, events in look.poll(0)):
            os.write(descriptor, text.encode(errors="replace") + b"\n")
    except OSError:
        pass  # nobody reads it


def log(text: str) -> None:
    """Write *text* to standard error as the server's log would."""
    now = time.time()
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    line = " ".join(text.split())[:LINE_MAX]
    write(2, f"{date},{int(now * 1000) % 1000:03d} WARNING torrentfs.keeper: {line}")


def tell(line: str) -> None:
    """Write *line* to standard output, and let the pipe go: later ones reach nobody."""
    write(1, line)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)


def as_json(text: str) -> str:
    """Return *text* as a string of JSON (RFC 8259, 7)."""
    escaped = (c if c >= " " and c not in '"\\' else f"\\u{ord(c):04x}" for c in text)
    return f'"{"".join(escaped)}"'
