"""This module is the server's end of its keeper: what is held goes there, what the keeper wants comes here.

The protocol is described in `keeper`. How a server uses it:

    keeping = Keeping(descriptor_after_keeper_option, command)
    start = await keeping.prepared()                       # what was held; all is imported by now
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeping.run, is_well)           # heartbeat; a keeper that died gets a successor
        …
        keeping.hold(f"{key}.fuse", descriptor)            # each as soon as it exists
        keeping.ready(notice)                              # or keeping.failed(text, used_wrongly=…), and exit
        while True:
            match await keeping.word():
                case Suspend():  …; keeping.suspended()
                case Resume(reason):  …                    # serve on; also if it never was suspended
                case Leave():  exit at once, with all mounts left as they are
                case End():  unmount; keeping.done(); exit with 0

Nothing here waits for the keeper but `prepared` and `word`: what cannot be sent at once is sent by `run`.
"""

import array
import json
import logging
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import trio

from torrentfs.daemon import keeper
from torrentfs.daemon.programs import keeper_command
from torrentfs.errors import ControlError

log = logging.getLogger(__name__)

DESCRIPTOR_SIZE = 4
WORDS_MAX = 64
TEXT_MAX = 4_000
"""Characters of a reason or notice: escaped, they are six bytes each at most, and a message has 64 KiB."""
RESPAWN_DELAY_S = 1.0
RESPAWN_DELAY_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Start:
    """What a server starts with."""

    held: Mapping[str, int]
    """Descriptors by name, close-on-exec; the receiver's to use and close. The keeper has its own."""
    restarts: int
    """How often the keeper had to start a server again."""
    reason: str
    """Why the last one ended, in words; empty at the first start."""
    is_successor: bool
    """A predecessor waits, suspended, and resumes if this server is not ready in time."""
    is_foreground: bool = False
    """Standard error is the admin's to read."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop: let go of all that a successor needs, finish nothing, and say `suspended`."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Serve on, for *reason* (of one line): the successor could not start, or the keeper died meanwhile.

    It also comes when the reload failed before this server was suspended.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Exit at once, touching no mount: somebody else serves, or will, for *reason*."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Unmount everything, say `done`, exit with 0. May come before this server is ready."""


Word = Suspend | Resume | Leave | End


def is_always_well() -> bool:
    return True


class Keeping:
    """A server's connection with its keeper, for one task at a time to await words and `run` in another."""

    def __init__(self, descriptor: int, command: Sequence[str]) -> None:
        """Take over *descriptor*, which the keeper named; *command* starts a server, without `--keeper`.

        Raises: ControlError: there is no keeper at it.
        """
        self._command = list(command)
        self._channel: socket.socket | None = _channel(descriptor)
        self._outbox: deque[tuple[bytes, int]] = deque()
        self._wakeup = trio.Event()
        self._held: dict[str, int] = {}
        """Duplicates, for the keeper's successor, of all that it was given."""
        self._send_word, self._receive_word = trio.open_memory_channel[Word](WORDS_MAX)
        self._options: list[str] = []
        self._watchdog_s = keeper.WATCHDOG_S
        self._start = Start({}, 0, "", False)
        self._ready = ""
        self._is_reloading = self._is_suspended = self._is_ending = False
        self._spawned: subprocess.Popen[bytes] | None = None
        self._keeper_pid = os.getppid()

    @property
    def keeper_pid(self) -> int:
        """The keeper's process; 0 while there is none."""
        return self._keeper_pid

    # At the start

    async def prepared(self) -> Start:
        """Say so, and return what was held once the keeper says `start`; it does within its own deadlines.

        Raises: ControlError: the keeper has died before.
        """
        self._send("prepared")
        held: dict[str, int] = {}
        restarts, reason, is_successor = 0, "", False
        while True:
            word, rest, descriptor = await self._receive()
            match word:
                case "held" if descriptor >= 0:
                    held[rest] = descriptor
                    self._keep(rest, descriptor)
                    continue
                case "restarts":
                    count, _, reason = rest.partition(" ")
                    restarts, reason = int(count), _in_words(reason)
                case "successor":
                    is_successor = True
                case "start":
                    self._options = rest.split()
                    self._watchdog_s = _watchdog_s(self._options)
                    is_foreground = "--foreground" in self._options
                    self._start = Start(held, restarts, reason, is_successor, is_foreground)
                    return self._start
                case "":
                    raise ControlError("the keeper died before it said what to serve")
            _close(descriptor)

    # What a server says; none of these waits

    def hold(self, name: str, descriptor: int) -> None:
        """Have *descriptor* kept under *name*, in place of one of that name; it stays the caller's to close.

        What is held lives on although the caller closes it: a listening socket listens until it is dropped.
        """
        assert keeper.is_name(name), name
        self._keep(name, descriptor)
        self._send(f"hold {name}", descriptor)

    def drop(self, name: str) -> None:
        """Have what is kept under *name* closed, if anything is."""
        if name in self._held:
            os.close(self._held.pop(name))
        self._send(f"drop {name}")

    def log_to(self, descriptor: int) -> None:
        """Have what the keeper says go to *descriptor* too, unless it has an admin who reads it."""
        self._send("log", descriptor)

    def ready(self, notice: str = "") -> None:
        """Say that all that was held is served, and *notice* to whoever started us (usually nothing)."""
        self._ready = f"ready {json.dumps({'ready': True, 'notice': notice[:TEXT_MAX]})}"
        self._send(self._ready)

    def failed(self, error: str, *, used_wrongly: bool = False) -> None:
        """Say that this server cannot start; it exits next, with 1, or 2 if it was *used_wrongly*.

        In the foreground nobody repeats *error*: the server writes it to standard error itself.
        """
        word = {"ready": False, "error": error[:TEXT_MAX], "used_wrongly": used_wrongly}
        self._send(f"failed {json.dumps(word)}")

    def reload(self, offers: Mapping[str, int]) -> None:
        """Have a successor started, which gets *offers* in place of what is held under these names.

        The answer is a word: Suspend, and then Leave or Resume; or Resume at once. One reload at a time.
        """
        if self._channel is None:
            return self._tell(Resume("there is no keeper at this moment: try again"))
        self._is_reloading = True
        for name, descriptor in offers.items():
            assert keeper.is_name(name), name
            self._send(f"offer {name}", descriptor)
        return self._send("reload")

    def suspended(self) -> None:
        """Say that nothing is in use here any more that a successor needs."""
        self._is_suspended = True
        self._send("suspended")

    def serving(self) -> None:
        """Take note that this server serves: whoever suspended serves again, and may have another keeper."""
        self._is_suspended = False

    def end(self) -> None:
        """Have the keeper end all, or End said here if there is none."""
        if self._keeper_pid:
            with suppress(ProcessLookupError):
                os.kill(self._keeper_pid, signal.SIGTERM)
                return
        self._is_ending = True
        self._tell(End())

    def done(self) -> None:
        """Say that nothing is left to serve; this server exits next, with 0, and its keeper too."""
        self._send("done")

    def alive(self) -> None:
        """Give a sign of life; `run` does every quarter of the watchdog's time."""
        if not self._outbox:
            self._send("alive")

    # What the keeper says

    async def word(self) -> Word:
        """Return the next thing that the keeper wants. `run` must be running."""
        return await self._receive_word.receive()

    async def run(
        self, is_well: Callable[[], bool] = is_always_well, is_kept: Callable[[], None] = lambda: None
    ) -> None:
        """Give signs of life while *is_well*, take what the keeper says, and replace a keeper that died.

        *is_kept* is called when there is another. Never returns; to be cancelled.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, is_well)
            nursery.start_soon(self._flush_when_writable)
            delay_s = 0.0
            while True:
                began = trio.current_time()
                await self._listen()
                if trio.current_time() - began > RESPAWN_DELAY_MAX_S:
                    delay_s = 0.0
                await trio.sleep(delay_s)
                delay_s = min(max(delay_s * 2, RESPAWN_DELAY_S), RESPAWN_DELAY_MAX_S)
                self._replace_keeper()
                is_kept()

    async def _beat(self, is_well: Callable[[], bool]) -> None:
        while True:
            if is_well():
                self.alive()
            await trio.sleep(self._watchdog_s / 4)

    async def _flush_when_writable(self) -> None:
        while True:
            if self._channel is None or not self._outbox:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
                continue
            try:
                await trio.lowlevel.wait_writable(self._channel)
            except trio.ClosedResourceError:
                continue
            self._flush()

    async def _listen(self) -> None:
        """Pass on what the keeper wants, until it dies."""
        while self._channel is not None:
            word, rest, descriptor = await self._receive()
            _close(descriptor)
            match word:
                case "suspend":
                    self._tell(Suspend())
                case "resume":
                    self._is_reloading = False
                    self._tell(Resume(_in_words(rest)))
                case "leave":
                    self._tell(Leave("the successor serves"))
                case "end":
                    self._tell(End())
                case "":
                    self._on_death()

    def _tell(self, word: Word) -> None:
        try:
            self._send_word.send_nowait(word)
        except trio.WouldBlock:
            log.error("the keeper said more than anybody awaits: %r", word)

    def _on_death(self) -> None:
        """Let go of a dead keeper, and say what that means if it does not just get a successor."""
        self._close_channel()
        self._keeper_pid = 0
        is_first = not self._ready and not self._start.restarts
        if os.environ.get("NOTIFY_SOCKET"):
            self._tell(Leave("the keeper died, and systemd starts another"))
        elif not self._ready and self._start.is_successor:
            self._tell(Leave("the keeper died, and the predecessor resumes"))
        elif is_first:
            self._tell(End())
        elif self._is_reloading:
            self._is_reloading = False
            self._tell(Resume("the keeper died"))

    def _must_replace_keeper(self) -> bool:
        # While suspended, the successor may serve by now: who has the cache then is who lives on.
        if os.environ.get("NOTIFY_SOCKET") or self._is_suspended or self._is_ending:
            return False
        return bool(self._ready or (self._start.restarts and not self._start.is_successor))

    def _replace_keeper(self) -> None:
        """Start a keeper that adopts this server, if it is to live on."""
        if not self._must_replace_keeper():
            return
        if self._spawned:
            self._spawned.poll()  # no zombie of an earlier one
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = os.pidfd_open(os.getpid())
        try:
            adoption = ["--adopt", str(own), str(theirs.fileno())]
            held = [f"{name}={descriptor}" for name, descriptor in self._held.items()]
            self._spawned = subprocess.Popen(
                [*keeper_command(), *self._options, *adoption, *held, "--", *self._command],
                pass_fds=[own, theirs.fileno(), *self._held.values()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            log.error("the keeper died, and another cannot be started: %s", error)
            ours.close()
            return
        finally:
            os.close(own)
            theirs.close()
        log.warning("the keeper died; process %d is another", self._spawned.pid)
        ours.setblocking(False)
        self._channel, self._keeper_pid = ours, self._spawned.pid
        if self._ready:
            self._send(self._ready)

    # The channel

    def _keep(self, name: str, descriptor: int) -> None:
        former = self._held.get(name, -1)
        self._held[name] = os.dup(descriptor)
        _close(former)

    def _send(self, text: str, descriptor: int = -1) -> None:
        """Send *text*, now or when the keeper reads."""
        if self._channel is None:
            return  # what counts, the next keeper is told when it starts
        self._outbox.append((text.encode(), os.dup(descriptor) if descriptor >= 0 else -1))
        self._flush()
        if self._outbox:
            self._wakeup.set()

    def _flush(self) -> None:
        while self._channel is not None and self._outbox:
            data, descriptor = self._outbox[0]
            try:
                if descriptor < 0:
                    self._channel.send(data)
                else:
                    socket.send_fds(self._channel, [data], [descriptor])
            except BlockingIOError:
                return
            except OSError:
                self._forget_outbox()  # it has died, which `_listen` sees
                return
            self._outbox.popleft()
            _close(descriptor)

    def _forget_outbox(self) -> None:
        while self._outbox:
            _close(self._outbox.popleft()[1])

    async def _receive(self) -> tuple[str, str, int]:
        """Return the next message's word, its rest and its descriptor or -1; no word: the keeper died."""
        assert self._channel is not None
        while True:
            await trio.lowlevel.wait_readable(self._channel)
            try:
                data, beside, _, _ = self._channel.recvmsg(
                    keeper.MESSAGE_MAX, socket.CMSG_LEN(DESCRIPTOR_SIZE), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except OSError:
                return "", "", -1
            descriptors = array.array("i")
            for level, kind, rights in beside:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(rights[: len(rights) - len(rights) % DESCRIPTOR_SIZE])
            word, _, rest = data.decode(errors="replace").partition(" ")
            return word, rest, descriptors[0] if descriptors else -1

    def _close_channel(self) -> None:
        self._forget_outbox()
        if self._channel is not None:
            trio.lowlevel.notify_closing(self._channel)
            self._channel.close()
            self._channel = None


def _channel(descriptor: int) -> socket.socket:
    """Return the socket that was inherited as *descriptor*.

    Raises: ControlError.
    """
    try:
        os.set_inheritable(descriptor, False)
        channel = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ControlError(f"there is no keeper at descriptor {descriptor}: {error.strerror}") from None
    channel.setblocking(False)
    return channel


def _watchdog_s(options: Sequence[str]) -> float:
    given = dict(pairwise(options)).get("--watchdog")
    return float(given) if given else keeper.WATCHDOG_S


def _in_words(reason: str) -> str:
    """Return *reason*, or the error that it tells in JSON."""
    try:
        return str(json.loads(reason)["error"])
    except (ValueError, KeyError, TypeError):
        return reason


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
