"""This module starts a mount's daemon as a process of its own and waits until its tree answers.

Parent and child both: `start` is the command's side, `main` the child's. The settings go down the child's
standard input, its one word of success or failure comes up its standard output.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import msgspec

from torrentfs.config import MountConfiguration
from torrentfs.daemon.mountpoint import is_dead, is_mounted, unmount
from torrentfs.errors import MountError, TorrentfsError, UsageError

WORD_LENGTH_MAX = 65_536
GRACE_S = 10.0
"""How long a daemon that was told to end may take."""


def start(configuration: MountConfiguration) -> str:
    """Start the daemon for *configuration* (complete, paths absolute); return once the tree answers.

    What is returned is what the admin should know although it succeeded, usually nothing.

    Raises: MountError, UsageError: with the daemon's own reason; nothing is left behind.
    """
    deadline = time.monotonic() + configuration.mount.start_deadline_s
    # A file, not a pipe: nobody reads a pipe any more once the daemon is up.
    with tempfile.TemporaryFile() as stderr:
        child = _spawn(configuration, stderr)
        try:
            notice = _await_word(child, deadline, stderr)
            _await_tree(Path(configuration.mountpoint), deadline)
        except BaseException:
            _end(child, Path(configuration.mountpoint))
            raise
    return notice


def _spawn(configuration: MountConfiguration, stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Return the daemon's process, in a session of its own and told its settings."""
    # -P: a module of that name in the current directory must not run in our place.
    command = [sys.executable, "-P", "-m", "torrentfs.daemon.background", configuration.mountpoint]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True, cwd="/"
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(msgspec.json.encode(configuration))
    return child


def _await_word(child: "subprocess.Popen[bytes]", deadline: float, stderr: IO[bytes]) -> str:
    """Return what *child* has to say when it is ready.

    Raises: MountError, UsageError.
    """
    assert child.stdout is not None
    line = b""
    with child.stdout:
        while not line.endswith(b"\n") and len(line) < WORD_LENGTH_MAX:
            if not select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise MountError(
                    "the daemon did not get ready in time; its log in the cache says how far it came"
                )
            data = os.read(child.stdout.fileno(), WORD_LENGTH_MAX)
            if not data:
                raise MountError(f"the daemon ended before it was ready: {_last_line(stderr)}")
            line += data
    word = json.loads(line)
    if not word["ready"]:
        raise (UsageError if word["used_wrongly"] else MountError)(word["error"])
    return str(word["notice"])


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read(WORD_LENGTH_MAX).decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def _await_tree(mountpoint: Path, deadline: float) -> None:
    """Return when the mounted root answers, asked from here: this process does not serve it.

    Raises: MountError.
    """
    answers: list[OSError | None] = []

    def look() -> None:
        try:
            mountpoint.stat()
            answers.append(None)
        except OSError as error:
            answers.append(error)

    # A thread that may be left behind: a request to a daemon that hangs has no deadline of its own.
    asking = threading.Thread(target=look, daemon=True)
    asking.start()
    asking.join(max(deadline - time.monotonic(), 0))
    if not answers:
        raise MountError(f"{mountpoint} is mounted but does not answer; the daemon was ended")
    if answers[0] is not None:
        raise MountError(f"{mountpoint} is mounted but does not answer: {answers[0].strerror}")


def _end(child: "subprocess.Popen[bytes]", mountpoint: Path) -> None:
    """End *child* and what it mounted, in bounded time."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(GRACE_S)
    # Only a dead mount: a live one there is somebody else's, and why the child was refused.
    if child.returncode < 0 and is_mounted(mountpoint) and is_dead(mountpoint):
        with contextlib.suppress(MountError):
            unmount(mountpoint, lazy=True)


def _say(word: dict[str, object]) -> None:
    """Tell the parent, once, and let its pipe go."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(word).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> int:
    """Be the daemon: settings on standard input; return the exit code."""
    from torrentfs.daemon.mount import run  # the parent must not pay for it

    # Nobody's terminal: who sends this to all daemons means "read your settings again", not "die".
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configuration = msgspec.json.decode(sys.stdin.buffer.read(), type=MountConfiguration)
    try:
        run(configuration, lambda notice: _say({"ready": True, "notice": notice}), foreground=False)
    except TorrentfsError as error:
        _say({"ready": False, "error": str(error), "used_wrongly": isinstance(error, UsageError)})
        return 1
    except Exception as error:
        # Our bug: the log has the traceback, and whoever waits for us still gets a line.
        logging.getLogger(__name__).exception("the daemon failed")
        _say(
            {
                "ready": False,
                "error": f"the daemon failed, its log says more: {error!r}",
                "used_wrongly": False,
            }
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
