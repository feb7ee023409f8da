"""This module answers questions to a daemon on its Unix socket; what the answers are, its caller says.

The other end is `control_client`; how a daemon gets its socket is in `claims`.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import trio

from torrentfs.errors import ControlError, TorrentfsError

QUESTION_LENGTH_MAX = 1024 * 1024
"""A reload tells the settings of all mounts of a server."""
QUESTION_DEADLINE_S = 5.0
ANSWER_DEADLINE_S = 120.0
"""A mount waits for its first catalog, and says itself when that takes too long."""
ASKERS_MAX = 16
"""Conversations at a time; more wait in the kernel's backlog."""
ACCEPT_PAUSE_S = 0.2

Answers = Mapping[str, Callable[[Any], Awaitable[Any]]]
"""The words that may be asked; each is given what was said with it, JSON of any kind, None if nothing was."""

log = logging.getLogger(__name__)


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
                answer = b""
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
                    answer = await _answer(line, answers)
                    nursery.cancel_scope.cancel()
                if answer:
                    await stream.send_all(answer + b"\n")
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # who asked has gone or sleeps: nothing is owed
    finally:
        limiter.release()


async def _cancel_when_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Cancel *scope* when nobody waits for an answer any more: what a mount was asked for by Ctrl-C, say."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(1):
            pass
    scope.cancel()


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
    return await answers[word](question.get("with"))
