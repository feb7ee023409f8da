"""This module asks a daemon, a mount's or an origin's, over its Unix socket; answering is done in `control`.

One JSON object per line each way: {"ask": WORD, "with": …}, {"answer": …} or {"error": TEXT}. Without trio:
the command line has no use for it.
"""

import json
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torrentfs.daemon.runtime import socket_path, sockets
from torrentfs.errors import ControlError

ANSWER_LENGTH_MAX = 256 * 1024 * 1024
"""A catalog of a million versions still fits."""
ASK_DEADLINE_S = 20.0
CONNECT_DEADLINE_S = 5.0
AGAIN_INTERVAL_S = 0.05
ASKED_AT_ONCE = 64


class Interrupted(ControlError):
    """The daemon ended, or was ended, before it answered."""


def ask(place: Path, what: str, deadline_s: float = ASK_DEADLINE_S, given: object = None) -> Any:
    """Return the answer to *what* of the daemon of *place*, a mountpoint or a seeded repository (resolved).
    *given* is said with it.

    A server that dies meanwhile has a successor, which is asked again.

    Raises: ControlError: no daemon, no answer in time, or a refusal.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            return ask_once(place, what, max(deadline - time.monotonic(), 0.0), given)
        except Interrupted:
            if time.monotonic() > deadline or daemon_pid(place) is None:
                raise
        time.sleep(AGAIN_INTERVAL_S)


def ask_once(place: Path, what: str, deadline_s: float, given: object = None) -> Any:
    """Do as `ask`, with more to say than a word; it is not said again.

    Raises: ControlError; Interrupted: whether it was done is not known.
    """
    connection = _connect(socket_path(place))
    if connection is None:
        raise ControlError(f"no daemon of yours serves {place}")
    with connection:
        return _converse(connection, {"ask": what, "with": given}, deadline_s, f"of {place}")


def ask_all(what: str, deadline_s: float = ASK_DEADLINE_S) -> tuple[list[Any], list[ControlError]]:
    """Return the answers of all daemons of this user, and the errors of those that did not answer.

    A daemon that has ended meanwhile is neither.
    """
    answers: list[Any] = []
    errors: list[ControlError] = []

    def ask_one(path: Path) -> None:
        try:
            connection = _connect(path)
            if connection is None:
                return
            with connection:
                whom = f"of process {_peer_pid(connection)}"
                answer = _converse(connection, {"ask": what}, deadline_s, whom)
        except ControlError as error:
            if _is_listening(path):
                errors.append(error)
        else:
            # The socket of a cache has nothing to tell: each of its mounts does.
            answers.extend([] if answer is None else [answer])

    # Side by side: one that hangs must not hold up the others.
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        list(pool.map(ask_one, sockets()))
    return answers, errors


def daemon_pid(place: Path) -> int | None:
    """Return the process that serves *place*; None if there is none. It need not answer."""
    connection = _connect(socket_path(place))
    if connection is None:
        return None
    with connection:
        return _peer_pid(connection)


def _connect(path: Path) -> socket.socket | None:
    """Return a connection; None when nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_DEADLINE_S)
    try:
        connection.connect(os.fsencode(path))
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise ControlError(f"{path}: {error.strerror or error}") from None
    return connection


def _is_listening(path: Path) -> bool:
    try:
        connection = _connect(path)
    except ControlError:
        return True
    if connection is not None:
        connection.close()
    return connection is not None


def _peer_pid(connection: socket.socket) -> int:
    """Return who called listen() on the other end (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("iII", credentials)[0]
    return pid


def _converse(connection: socket.socket, what: object, deadline_s: float, whom: str) -> Any:
    """Return the one answer to *what*.

    Raises: ControlError.
    """
    deadline = time.monotonic() + deadline_s
    line = bytearray()
    try:
        connection.sendall(json.dumps(what).encode() + b"\n")
        while not line.endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = connection.recv(1 << 20)
            line += data
            if not data or len(line) > ANSWER_LENGTH_MAX:
                raise Interrupted(f"the daemon {whom} ended in the middle of its answer")
        answer = json.loads(line)
    except TimeoutError:
        raise ControlError(f"the daemon {whom} did not answer within {deadline_s:.3g} s") from None
    except ConnectionError as error:
        raise Interrupted(f"the daemon {whom} ended before it answered: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise ControlError(f"the daemon {whom} did not answer: {error}") from None
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer["answer"]
