"""This module starts a mount for the command line, and waits until its tree answers.

Who is to serve it: the server of its cache if one runs, which is asked; else a keeper of its own; or a daemon
of one mount. Processes that are started say one word of success or failure, a line of JSON, on their standard
output.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from torrentfs.daemon import claims
from torrentfs.daemon.control_client import Interrupted, ask_once, daemon_pid
from torrentfs.daemon.mountpoint import is_dead, is_mounted, unmount
from torrentfs.daemon.programs import alone_command, keeper_command, server_command
from torrentfs.daemon.request import CONFIG, NODE_CONTROL, Request, encode, in_memory
from torrentfs.daemon.runtime import key_of
from torrentfs.errors import CacheError, MountError, UsageError

WORD_LENGTH_MAX = 65_536
GRACE_S = 10.0
"""How long a daemon that was told to end may take."""
AGAIN_INTERVAL_S = 0.1

Process = subprocess.Popen[bytes]


def start(request: Request) -> str:
    """Have the mount of *request* served; return once the tree answers.

    What is returned is what the admin should know although it succeeded, usually nothing.

    Raises: MountError, UsageError, ControlError: with the daemon's own reason; nothing is left behind.
    """
    deadline = time.monotonic() + request.configuration.mount.start_deadline_s
    if request.front == "pyfuse3":
        return _start(_alone, request, deadline)
    notice = join(request, deadline)
    if notice is not None:
        return notice
    try:
        return _start(_kept, request, deadline)
    except MountError:
        # Another mount of the same cache may just have been quicker.
        notice = join(request, deadline)
        if notice is None:
            raise
        return notice


def join(request: Request, deadline: float) -> str | None:
    """Have the server of the cache serve the mount too, and return what is to be known; None: there is none.

    Raises: MountError, ControlError.
    """
    while daemon_pid(request.cache) is not None:
        left_s = max(deadline - time.monotonic(), 0.0)
        try:
            notice = str(ask_once(request.cache, "mount", left_s, msgspec.to_builtins(request)))
        except Interrupted:
            # It died, or had just nothing left to serve: its successor is asked, or there is none.
            if not left_s:
                raise
            time.sleep(AGAIN_INTERVAL_S)
            continue
        _await_tree(request.mountpoint, deadline)
        return notice
    return None


def succeeds_keeper() -> bool:
    """Tell whether a service manager started this process with what a keeper left (sd_listen_fds(3)).

    The sockets among that accept questions, which nobody answers before there is a keeper again.
    """
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def become_keeper(request: Request) -> None:
    """Be the keeper of the mount of *request* instead of this program; standard error stays the admin's.

    Returns if another one was quicker to take the cache.

    Raises: MountError, ControlError.
    """
    options = ["--foreground"]
    if not succeeds_keeper():
        try:
            # Now: services that start at the same moment must not all become keepers.
            claimed = claims.take(request.cache, claims.is_used_already).detach()
        except CacheError:
            return
        os.set_inheritable(claimed, True)
        options.append(f"{NODE_CONTROL}={claimed}")
    command, held = _keeper_words(request, options)
    os.set_inheritable(held, True)
    sys.stdout.flush()
    os.execv(command[0], command)


def _keeper_words(request: Request, options: Sequence[str] = ()) -> tuple[list[str], int]:
    """Return a keeper's command line for *request*, and the descriptor that it inherits.

    Raises: MountError.
    """
    held = in_memory(CONFIG, encode(request))
    name = f"{key_of(request.mountpoint)}.{CONFIG}"
    deadline = ["--start-deadline", str(request.configuration.mount.start_deadline_s)]
    return [*keeper_command(), *options, *deadline, f"{name}={held}", "--", *server_command()], held


def _kept(request: Request, stderr: IO[bytes]) -> Process:
    """Return a keeper."""
    command, held = _keeper_words(request)
    try:
        return _spawned(command, stderr, pass_fds=[held])
    finally:
        os.close(held)


def _alone(request: Request, stderr: IO[bytes]) -> Process:
    """Return a daemon of one mount, which is told its settings on its standard input."""
    with tempfile.TemporaryFile() as told:
        told.write(encode(request))
        told.seek(0)
        return _spawned([*alone_command(), str(request.mountpoint)], stderr, stdin=told)


def _start(spawn: Callable[[Request, IO[bytes]], Process], request: Request, deadline: float) -> str:
    """Start processes that serve *request*; return what is to be known once its tree answers.

    Raises: MountError, UsageError.
    """
    # A file, not a pipe: nobody reads a pipe any more once the daemon is up.
    with tempfile.TemporaryFile() as stderr:
        child = spawn(request, stderr)
        try:
            notice = _await_word(child, deadline, stderr)
            _await_tree(request.mountpoint, deadline)
        except BaseException:
            _end(child, request.mountpoint)
            raise
    return notice


def _spawned(
    command: list[str], stderr: IO[bytes], *, stdin: IO[bytes] | None = None, pass_fds: Sequence[int] = ()
) -> Process:
    """Return a process in a session of its own."""
    return subprocess.Popen(
        command,
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
        cwd="/",
    )


def _await_word(child: Process, deadline: float, stderr: IO[bytes]) -> str:
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
        raise MountError(f"{mountpoint} is mounted but does not answer; torrentfs umount --force ends it")
    if answers[0] is not None:
        raise MountError(f"{mountpoint} is mounted but does not answer: {answers[0].strerror}")


def _end(child: Process, mountpoint: Path) -> None:
    """End *child* and what it mounted, in bounded time."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(GRACE_S)
    # Only a dead mount: a live one there is somebody else's, and why the child was refused.
    if daemon_pid(mountpoint) is None:
        if is_mounted(mountpoint) and is_dead(mountpoint):
            with contextlib.suppress(MountError):
                unmount(mountpoint, lazy=True)
        claims.release(mountpoint)
