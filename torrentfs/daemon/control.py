"""This module answers questions to a daemon on its Unix socket; what the answers are, its caller says.

The socket doubles as the claim on a mountpoint, or on a repository to seed: whoever listens there serves it.
The other end is `control_client`.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from torrentfs.daemon import holders
from torrentfs.daemon.control_client import daemon_pid
from torrentfs.daemon.mountpoint import is_mounted
from torrentfs.daemon.runtime import device_path, socket_path
from torrentfs.errors import ControlError, MountError, TorrentfsError

QUESTION_LENGTH_MAX = 4096
QUESTION_DEADLINE_S = 5.0
ANSWER_DEADLINE_S = 60.0
ASKERS_MAX = 16
"""Conversations at a time; more wait in the kernel's backlog."""
BACKLOG = 64
ACCEPT_PAUSE_S = 0.2
CLAIM_DEADLINE_S = 10.0
"""How long others may keep the directory of sockets: they do so for milliseconds."""
CLAIM_INTERVAL_S = 0.05

Answers = Mapping[str, Callable[[], Awaitable[Any]]]

log = logging.getLogger(__name__)


def _mounted(mountpoint: Path, pid: int) -> TorrentfsError:
    held = None if is_mounted(mountpoint) else holders.known_hold(mountpoint)
    if held is not None and not held.mounted:
        return holders.goes_on(mountpoint, pid, held.held_by)
    return MountError(
        f"{mountpoint} is mounted already, by process {pid}; torrentfs umount {mountpoint} ends it"
    )


@contextmanager
def claim(place: Path, refusal: Callable[[Path, int], TorrentfsError] = _mounted) -> Iterator[socket.socket]:
    """Listen for questions about *place* (resolved), a mountpoint by default: no other daemon may then.

    Raises: what *refusal* makes of the process that does already; ControlError.
    """
    path = socket_path(place)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Between seeing that a socket is dead and replacing it nobody else may do the same.
        _lock(directory, path.parent)
        pid = daemon_pid(place)
        if pid is None:
            path.unlink(missing_ok=True)
            device_path(place).unlink(missing_ok=True)
            listener.bind(os.fsencode(path))
            listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    if pid is not None:
        listener.close()
        # Unlocked: to find the reason takes a look at all processes.
        raise refusal(place, pid)
    try:
        yield listener
    finally:
        device_path(place).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        listener.close()


def _lock(directory: int, path: Path) -> None:
    """Lock the open *directory*.

    Raises: ControlError: another process keeps it locked.
    """
    deadline = time.monotonic() + CLAIM_DEADLINE_S
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ControlError(
                    f"{path} is locked by another process (fuser -v {path} names it)"
                ) from None
        time.sleep(CLAIM_INTERVAL_S)


async def serve(listener: socket.socket, answers: Answers) -> None:
    """Answer questions until cancelled. *answers* has the words that may be asked."""
    limiter = trio.Semaphore(ASKERS_MAX)
    async with trio.open_nursery() as nursery:
        accepting = trio.socket.from_stdlib_socket(listener.dup())
        with accepting:
            while True:
                await limiter.acquire()
                connection = await _accept(accepting)
                nursery.start_soon(_serve_one, trio.SocketStream(connection), answers, limiter)


async def _accept(accepting: trio.socket.SocketType) -> trio.socket.SocketType:
    """Return the next connection; no lack of descriptors ends the daemon."""
    while True:
        try:
            connection, _ = await accepting.accept()
            return connection
        except OSError as error:
            log.warning("cannot answer on the control socket: %s", error.strerror)
            await trio.sleep(ACCEPT_PAUSE_S)


async def _serve_one(stream: trio.SocketStream, answers: Answers, limiter: trio.Semaphore) -> None:
    """Answer one question and hang up."""
    try:
        async with stream:
            with trio.fail_after(QUESTION_DEADLINE_S):
                line = await _read_line(stream)
            with trio.fail_after(ANSWER_DEADLINE_S):
                await stream.send_all(await _answer(line, answers) + b"\n")
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # who asked has gone or sleeps: nothing is owed
    finally:
        limiter.release()


async def _read_line(stream: trio.SocketStream) -> bytes:
    """Return what was asked; what came so far if the other end closes or talks too much."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= QUESTION_LENGTH_MAX:
        data = await stream.receive_some(QUESTION_LENGTH_MAX)
        if not data:
            break
        line += data
    return bytes(line)


async def _answer(line: bytes, answers: Answers) -> bytes:
    """Return the answer to *line*; every failure is one, so that the daemon lives on."""
    try:
        return msgspec.json.encode({"answer": await _asked(line, answers)})
    except msgspec.DecodeError:
        error = "the question is not a line of JSON"
    except TorrentfsError as refusal:
        error = str(refusal)
    except Exception as fault:
        log.exception("a question could not be answered")
        error = f"the daemon failed to answer, its log says why: {fault!r}"
    return msgspec.json.encode({"error": error.encode(errors="backslashreplace").decode()})


async def _asked(line: bytes, answers: Answers) -> Any:
    """Return what the word in *line* is answered with.

    Raises: msgspec.DecodeError, TorrentfsError, and whatever a bug of ours raises.
    """
    question = msgspec.json.decode(line)
    word = question.get("ask") if isinstance(question, dict) else None
    if not isinstance(word, str) or word not in answers:
        raise ControlError(f"this daemon answers only to: {', '.join(sorted(answers))}")
    return await answers[word]()
