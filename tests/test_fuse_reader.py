"""This module tests the thread that reads the kernel's requests, with a socket in place of /dev/fuse.

A socket of packets is read and written message by message, as the device is. Nothing is mounted.
"""

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_content import LocalContent, MemoryLedger

from torrentfs.config import MountSettings
from torrentfs.fuse import protocol
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.journal import SLOT_LENGTH, Journal
from torrentfs.fuse.operations import SILENT, Operations, Parts
from torrentfs.fuse.protocol import RESEND_BIT, Opcode
from torrentfs.fuse.reader import Channel, Reader, Replies, Request
from torrentfs.fuse.turns import Turns
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository
from torrentfs.tree import ROOT, Inode, Tree

WAIT_S: Final = 30.0
"""Longer than anything here takes: who waits this long has hung."""
SLOTS: Final = 8
LAST: Final = 0x1A57_1A57_1A57
"""`unique` of a request that follows others: once it is answered, they were looked at."""
CALLER: Final = 4711
PLAIN: Final = b"hello\n"
FUZZ_S: Final = 5.0
"""What fuzzing may take; examples beyond it are passed over."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    source = directory / "source"
    (source / "many").mkdir(parents=True)
    for number in range(300):
        (source / f"many/{number:03}").write_bytes(b"%03d" % number)
    (source / "plain").write_bytes(PLAIN)
    (source / "large").write_bytes(bytes(range(256)) * 200)
    (source / "link").symlink_to("plain")
    os.setxattr(source / "plain", "user.name", b"value")
    publish(made, source, "soft/v1")
    return made


class NoPusher:
    """A pusher that has nothing to push until a test says so."""

    def __init__(self) -> None:
        self.is_due = False
        self.push: Callable[[], None] = lambda: None


class Kernel:
    """The other end of the socket: what the kernel sends, and what it gets."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.settimeout(WAIT_S)

    def send(self, opcode: int, inode: int = ROOT, body: bytes = b"", unique: int = 2) -> None:
        self.send_bytes(request(opcode, inode, body, unique))

    def send_bytes(self, message: bytes) -> None:
        self._end.send(message)

    def reply(self) -> tuple[int, int, bytes]:
        """Return what comes next: (unique, errno, body)."""
        message = self._end.recv(1 << 21)
        length, error, unique = protocol.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        assert -512 < error <= 0
        return unique, -error, message[protocol.OUT_HEADER.size :]

    def ask(self, opcode: int, inode: int = ROOT, body: bytes = b"", unique: int = 2) -> tuple[int, bytes]:
        """Send a request and return its answer: errno and body."""
        self.send(opcode, inode, body, unique)
        replied, code, answer = self.reply()
        assert replied == unique
        return code, answer

    def settle(self) -> list[tuple[int, int, bytes]]:
        """Have all that was sent looked at; return the replies to it."""
        self.send(Opcode.STATFS, unique=LAST)
        replies = []
        while (reply := self.reply())[0] != LAST:
            replies.append(reply)
        return replies


@dataclass
class Stand:
    """A reader in a thread of its own, and what it handed over."""

    kernel: Kernel
    content: LocalContent
    filesystem: Filesystem
    operations: Operations
    journal: Journal
    channel: Channel
    turns: Turns
    pusher: NoPusher
    initialise: Callable[[int, memoryview], None]
    interrupts: list[int] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    handed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    failures: list[BaseException] = field(default_factory=list)
    wait: Callable[[Request], None] | None = None
    thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.replies = Replies(self.channel)
        self.reader = Reader(
            self.channel,
            self.operations,
            self.turns,
            spin_us=0,
            initialise=self._initialise,
            interrupted=self.interrupts.append,
            wait=self._wait,
            pusher=self.pusher,
        )

    def _initialise(self, unique: int, body: memoryview) -> None:
        self.initialise(unique, body)

    def _wait(self, request: Request) -> None:
        if self.wait:
            self.wait(request)
        self.requests.append(request)
        self.handed.release()

    def start(self, replay: bool = False) -> None:
        def run() -> None:
            try:
                self.reader.run(replay)
            except BaseException as error:
                self.failures.append(error)

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def await_request(self) -> Request:
        """Return what was handed over last, once there is one more."""
        assert self.handed.acquire(timeout=WAIT_S)
        return self.requests[-1]

    def join(self) -> None:
        assert self.thread
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.thread = None

    def end(self) -> None:
        """Stop the reader, if it still runs; it must not have failed."""
        if self.thread:
            self.reader.stop()
            self.join()
        assert self.failures == []

    def left(self) -> list[bytes]:
        """Return the requests that a next server would find."""
        later = Journal(os.dup(self.journal.descriptor))
        found = [bytes(message) for _, message in later.left()]
        later.close()
        return found

    def free_slots(self) -> int:
        """Count the slots that are free, and leave them so."""
        slots: list[int] = []
        while (slot := self.journal.take()) is not None:
            slots.append(slot)
        for slot in slots:
            self.journal.free(slot)
        return len(slots)


@contextmanager
def standing(
    repository: Repository, held: Sequence[Kind] = (), slots: int = SLOTS, journal: Journal | None = None
) -> Iterator[Stand]:
    """Set up a reader that does not run yet; it is ended with the block."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    content = LocalContent(repository.public, held)
    tree = Tree(content, MemoryLedger(), (0, 0))
    tree.swap(repository.catalog())
    filesystem = Filesystem(tree, content, MountSettings())
    its.setblocking(False)
    with ours, its:
        journal = journal or Journal.create(slots)
        stand = Stand(
            kernel=Kernel(ours),
            content=content,
            filesystem=filesystem,
            operations=Operations(filesystem, lambda *_: None),
            journal=journal,
            channel=Channel(its.fileno(), journal),
            turns=Turns(),
            pusher=NoPusher(),
            initialise=lambda unique, body: None,
        )
        try:
            yield stand
        finally:
            stand.end()
            stand.reader.close()
            journal.close()
            # They hold each other, and the journal's memory, which is a descriptor each.
            vars(stand).clear()


@pytest.fixture
def stand(repository: Repository) -> Iterator[Stand]:
    with standing(repository) as made:
        made.start()
        yield made


def request(opcode: int, inode: int = ROOT, body: bytes = b"", unique: int = 2) -> bytes:
    length = protocol.IN_HEADER.size + len(body)
    return protocol.IN_HEADER.pack(length, opcode, unique, inode, 0, 0, CALLER, 0, 0) + body


def read_in(offset: int = 0, size: int = 4096) -> bytes:
    return protocol.READ_IN.pack(0, offset, size)


def find(repository: Repository, path: str) -> Inode:
    """Return an inode, the same in each tree of this repository."""
    content = LocalContent(repository.public)
    tree = Tree(content, MemoryLedger(), (0, 0))
    tree.swap(repository.catalog())
    inode = ROOT
    for name in path.split("/"):
        found = tree.lookup(inode, name.encode())
        assert found
        inode = found.inode
    return inode


# What is answered at once


def test_requests_are_answered_in_the_thread(stand: Stand, repository: Repository) -> None:
    package = find(repository, "soft/v1")

    code, entry = stand.kernel.ask(Opcode.LOOKUP, package, b"plain\0")

    assert (code, len(entry)) == (0, protocol.ENTRY_OUT.size)
    assert stand.kernel.ask(Opcode.READ, find(repository, "soft/v1/plain"), read_in()) == (0, PLAIN)
    assert stand.kernel.ask(Opcode.READLINK, find(repository, "soft/v1/link")) == (0, b"plain")
    assert stand.requests == []


def test_answers_of_the_tree_are_errors_to_the_kernel(stand: Stand, repository: Repository) -> None:
    plain = find(repository, "soft/v1/plain")

    assert stand.kernel.ask(Opcode.GETATTR, 99 << 24) == (errno.ESTALE, b"")
    assert stand.kernel.ask(Opcode.READLINK, plain) == (errno.EINVAL, b"")
    body = protocol.GETXATTR_IN.pack(1) + b"user.name\0"
    assert stand.kernel.ask(Opcode.GETXATTR, plain, body) == (errno.ERANGE, b"")
    assert stand.requests == []


@pytest.mark.parametrize(
    "opcode", [0, 7, Opcode.OPEN, Opcode.OPENDIR, Opcode.STATX, Opcode.POLL, 99, 1 << 31]
)
def test_what_is_no_operation_of_ours_is_not_implemented(stand: Stand, opcode: int) -> None:
    assert stand.kernel.ask(opcode, body=bytes(100)) == (errno.ENOSYS, b"")


def test_a_file_is_no_terminal(stand: Stand) -> None:
    assert stand.kernel.ask(Opcode.IOCTL, body=bytes(32)) == (errno.ENOTTY, b"")


@pytest.mark.parametrize("opcode", sorted(SILENT))
def test_what_has_no_reply_gets_none(stand: Stand, opcode: int) -> None:
    stand.kernel.send(opcode, body=bytes(16))

    assert stand.kernel.settle() == []


@pytest.mark.parametrize("unique", [0, 1, RESEND_BIT | 6, (1 << 64) - 1])
def test_a_reply_has_the_mark_of_its_request(stand: Stand, unique: int) -> None:
    code, _ = stand.kernel.ask(Opcode.GETATTR, unique=unique)

    assert code == 0


def test_answered_requests_leave_no_trace(stand: Stand) -> None:
    for _ in range(3 * SLOTS):
        stand.kernel.ask(Opcode.GETATTR)
        stand.kernel.ask(Opcode.OPEN)
        stand.kernel.send(Opcode.FORGET, body=bytes(8))
    stand.kernel.settle()

    stand.end()

    assert stand.left() == []
    assert stand.free_slots() == SLOTS


def test_what_is_answered_is_not_left_to_a_next_server_while_this_one_sleeps(stand: Stand) -> None:
    stand.kernel.ask(Opcode.GETATTR)
    end = time.monotonic() + WAIT_S

    # The answer is sent first.
    while stand.left():
        assert time.monotonic() < end

    assert stand.thread


def test_an_operation_runs_in_turn_and_what_comes_of_it_is_sent_after(stand: Stand) -> None:
    held: list[bool] = []

    def look(inode: Inode, body: memoryview) -> Parts:
        held.append(stand.turns._turn.locked())
        raise ZeroDivisionError

    stand.operations.table[Opcode.STATFS] = look
    stand.wait = lambda _: held.append(stand.turns._turn.locked())

    stand.kernel.send(Opcode.STATFS)

    stand.await_request()
    assert held == [True, False]


def test_how_long_a_request_takes_can_be_seen(stand: Stand) -> None:
    since: list[int] = []

    def look(inode: Inode, body: memoryview) -> Parts:
        since.append(stand.reader.busy_since_ns)
        return ()

    stand.operations.table[Opcode.READLINK] = look
    before = time.monotonic_ns()

    stand.kernel.ask(Opcode.READLINK)

    stand.kernel.settle()
    stand.end()
    assert before <= since[0] <= time.monotonic_ns()
    assert stand.reader.busy_since_ns == 0


# INIT and INTERRUPT


def test_init_is_handed_over(stand: Stand) -> None:
    bodies: list[bytes] = []

    def initialise(unique: int, body: memoryview) -> None:
        bodies.append(bytes(body))
        stand.replies.answer(unique, (b"agreed",))

    stand.initialise = initialise

    assert stand.kernel.ask(Opcode.INIT, 0, b"offer") == (0, b"agreed")
    assert bodies == [b"offer"]


@pytest.mark.warns("INIT of 3 bytes")
def test_an_init_that_is_none_is_refused(stand: Stand) -> None:
    stand.initialise = lambda unique, body: (protocol.init_in(body), None)[1]

    assert stand.kernel.ask(Opcode.INIT, 0, b"abc") == (errno.EIO, b"")


def test_an_interrupt_is_passed_on_without_a_reply(stand: Stand) -> None:
    stand.kernel.send(Opcode.INTERRUPT, 0, struct.pack("=Q", RESEND_BIT | 22), unique=23)

    assert stand.kernel.settle() == []
    assert stand.interrupts == [RESEND_BIT | 22]


def test_an_interrupt_that_names_nobody_is_passed_over_in_silence(stand: Stand) -> None:
    stand.kernel.send(Opcode.INTERRUPT, 0, b"abc")

    assert stand.kernel.settle() == []
    assert stand.interrupts == []


# What is handed over


def test_what_is_not_here_is_handed_over_and_others_are_answered(repository: Repository) -> None:
    with standing(repository, [Kind.PACK]) as stand:
        stand.start()
        inode = find(repository, "soft/v1/plain")

        stand.kernel.send(Opcode.READ, inode, read_in(1, 3), unique=10)

        waiting = stand.await_request()
        assert (waiting.unique, waiting.opcode, waiting.inode) == (10, Opcode.READ, inode)
        assert waiting.thread == CALLER
        assert stand.kernel.ask(Opcode.LOOKUP, find(repository, "soft/v1"), b"absent\0")[0] == 0
        assert request(Opcode.READ, inode, read_in(1, 3), 10) in stand.left()

        stand.content.release()
        stand.replies.answer(waiting.unique, waiting.operation(waiting.inode, waiting.body))
        stand.reader.free(waiting.slot)

        assert stand.kernel.reply() == (10, 0, PLAIN[1:4])
        stand.end()
        assert stand.left() == []


def test_requests_that_wait_keep_their_bodies_whatever_else_is_asked(repository: Repository) -> None:
    with standing(repository, [Kind.PACK]) as stand:
        stand.start()
        inode = find(repository, "soft/v1/plain")
        for number in range(5):
            stand.kernel.send(Opcode.READ, inode, read_in(number, 1), unique=number)
            stand.await_request()
            stand.kernel.ask(Opcode.GETATTR, body=b"\xff" * 100, unique=99)

        assert [bytes(waiting.body) for waiting in stand.requests] == [read_in(n, 1) for n in range(5)]
        assert len({waiting.slot for waiting in stand.requests}) == 5


def test_a_body_that_is_none_is_handed_over_to_be_reported(stand: Stand) -> None:
    stand.kernel.send(Opcode.READ, body=b"abc")

    assert bytes(stand.await_request().body) == b"abc"
    assert stand.kernel.settle() == []


def test_a_fault_of_ours_is_handed_over_to_be_reported(stand: Stand) -> None:
    def fail(inode: Inode, body: memoryview) -> Parts:
        raise ZeroDivisionError

    stand.operations.table[Opcode.READLINK] = fail

    stand.kernel.send(Opcode.READLINK)

    assert stand.await_request().opcode == Opcode.READLINK
    assert stand.kernel.settle() == []


@pytest.mark.warns("a request of 39 bytes is none")
def test_a_message_without_a_header_is_no_end(stand: Stand) -> None:
    stand.kernel.send_bytes(request(Opcode.GETATTR)[:39])

    assert stand.kernel.settle() == []


# The journal


def left_behind(*messages: bytes) -> Journal:
    """Make the journal of a server that died over *messages*."""
    first = Journal.create(SLOTS)
    for message in messages:
        slot = first.take()
        assert slot is not None
        first.buffer(slot)[: len(message)] = message
    later = Journal(os.dup(first.descriptor))
    first.close()
    return later


def test_what_a_predecessor_left_is_answered_first(repository: Repository) -> None:
    journal = left_behind(request(Opcode.GETATTR, unique=6), request(Opcode.OPEN, unique=8))
    with standing(repository, journal=journal) as stand:
        stand.kernel.send(Opcode.GETATTR, unique=4)

        stand.start(replay=True)

        assert [stand.kernel.reply()[:2] for _ in range(3)] == [(6, 0), (8, errno.ENOSYS), (4, 0)]
        stand.end()
        assert stand.free_slots() == SLOTS


def test_what_the_kernel_sends_again_is_not_answered_twice(repository: Repository) -> None:
    journal = left_behind(request(Opcode.GETATTR, unique=6))
    with standing(repository, journal=journal) as stand:
        stand.start(replay=False)

        assert stand.kernel.settle() == []
        stand.end()
        assert stand.left() == []
        assert stand.free_slots() == SLOTS


def test_what_was_left_and_is_not_here_goes_on_waiting(repository: Repository) -> None:
    message = request(Opcode.READ, find(repository, "soft/v1/plain"), read_in(), unique=6)
    with standing(repository, [Kind.PACK], journal=left_behind(message)) as stand:
        stand.start(replay=True)

        assert stand.await_request().unique == 6
        assert stand.kernel.settle() == []
        stand.end()
        assert stand.left() == [message]


@pytest.mark.warns("a request of 8 bytes is none")
def test_what_was_left_damaged_is_dropped(repository: Repository) -> None:
    journal = left_behind(struct.pack("=II", 8, 3), request(Opcode.GETATTR, unique=6))
    with standing(repository, journal=journal) as stand:
        stand.start(replay=True)

        assert stand.kernel.reply()[0] == 6
        stand.end()
        assert stand.left() == []


def test_without_slots_requests_wait_in_the_kernel(repository: Repository) -> None:
    with standing(repository, [Kind.PACK], slots=2) as stand:
        stand.start()
        inode = find(repository, "soft/v1/plain")
        for unique in (10, 12):
            stand.kernel.send(Opcode.READ, inode, read_in(), unique=unique)
            stand.await_request()

        stand.kernel.send(Opcode.GETATTR, unique=14)
        first = stand.requests[0]
        stand.replies.refuse(first.unique, errno.EIO)
        stand.reader.free(first.slot)

        assert stand.kernel.reply()[:2] == (10, errno.EIO)
        assert stand.kernel.reply()[:2] == (14, 0)
        stand.end()
        assert [message[8:16] for message in stand.left()] == [struct.pack("=Q", 12)]


def test_slots_that_come_free_one_by_one_are_enough(repository: Repository) -> None:
    with standing(repository, [Kind.PACK], slots=1) as stand:
        stand.start()
        inode = find(repository, "soft/v1/plain")
        for unique in range(10):
            stand.kernel.send(Opcode.READ, inode, read_in(), unique=unique)
        for unique in range(10):
            waiting = stand.await_request()
            stand.replies.refuse(waiting.unique, errno.EIO)
            stand.reader.free(waiting.slot)
            assert stand.kernel.reply()[:2] == (unique, errno.EIO)


# Ends


def test_it_stops_where_it_waits_for_requests(stand: Stand) -> None:
    stand.kernel.settle()

    stand.reader.stop()

    stand.join()
    assert stand.free_slots() == SLOTS


def test_it_stops_where_it_waits_for_a_slot(repository: Repository) -> None:
    with standing(repository, [Kind.PACK], slots=1) as stand:
        stand.start()
        message = request(Opcode.READ, find(repository, "soft/v1/plain"), read_in())
        stand.kernel.send_bytes(message)
        stand.await_request()

        stand.reader.stop()

        stand.join()
        assert stand.left() == [message]


def test_stopped_before_it_runs_it_ends_at_once(repository: Repository) -> None:
    with standing(repository) as stand:
        stand.reader.stop()

        stand.start()

        stand.join()
        assert stand.free_slots() == SLOTS


class Device:
    """What reading and writing the device ends in, as the test says; else it is what it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[int] = []
        self.writes: list[int] = []
        readv, writev = os.readv, os.writev

        def read(descriptor: int, buffers: Sequence[memoryview]) -> int:
            if self.reads:
                raise OSError(code := self.reads.pop(0), os.strerror(code))
            return readv(descriptor, buffers)

        def write(descriptor: int, buffers: Sequence[bytes]) -> int:
            if self.writes:
                raise OSError(code := self.writes.pop(0), os.strerror(code))
            return writev(descriptor, buffers)

        monkeypatch.setattr(os, "readv", read)
        monkeypatch.setattr(os, "writev", write)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ECONNABORTED])
def test_it_ends_with_the_connection(repository: Repository, device: Device, code: int) -> None:
    with standing(repository) as stand:
        device.reads.append(code)

        stand.start()

        stand.join()
        assert stand.free_slots() == SLOTS


def test_requests_that_were_taken_back_and_signals_are_no_end(stand: Stand, device: Device) -> None:
    device.reads += [errno.ENOENT, errno.EINTR, errno.EAGAIN, errno.ENOENT]

    assert stand.kernel.ask(Opcode.GETATTR)[0] == 0
    assert stand.kernel.ask(Opcode.GETATTR)[0] == 0


def test_what_reading_should_not_end_in_is_raised(repository: Repository, device: Device) -> None:
    with standing(repository) as stand:
        device.reads.append(errno.EPERM)

        stand.start()

        stand.join()
        [error] = stand.failures
        assert isinstance(error, PermissionError)
        stand.failures.clear()


# Replies


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV, errno.ECONNABORTED])
def test_a_reply_that_nobody_waits_for_is_no_trouble(stand: Stand, device: Device, code: int) -> None:
    device.writes.append(code)

    stand.kernel.send(Opcode.GETATTR)

    assert stand.kernel.settle() == []


@pytest.mark.warns("the kernel refused a reply of 120 bytes: Invalid argument")
def test_who_waits_for_a_reply_that_the_kernel_refuses_gets_an_error(stand: Stand, device: Device) -> None:
    device.writes.append(errno.EINVAL)

    assert stand.kernel.ask(Opcode.GETATTR) == (errno.EIO, b"")


@pytest.mark.parametrize("count", [0, 1, 1022, 1023, 1024, 5000])
def test_a_reply_may_have_any_number_of_parts(stand: Stand, count: int) -> None:
    stand.replies.answer(4, [b"ab"] * count)

    assert stand.kernel.reply() == (4, 0, b"ab" * count)


# Pushes


def test_what_is_due_is_pushed_after_the_answer_and_in_turn(stand: Stand) -> None:
    order: list[str] = []
    answer = stand.reader._replies.answer

    def push() -> None:
        order.append("pushed" if stand.turns._turn.locked() else "out of turn")
        stand.pusher.is_due = False

    stand.reader._replies.answer = lambda *answered: (order.append("answered"), answer(*answered))[1]
    stand.pusher.push = push
    stand.pusher.is_due = True

    stand.kernel.ask(Opcode.GETATTR)

    stand.end()
    assert order == ["answered", "pushed"]


@pytest.mark.warns("pushing what is read next failed")
def test_a_push_that_fails_is_no_end_of_the_mount(stand: Stand) -> None:
    def fail() -> None:
        stand.pusher.is_due = False
        raise ZeroDivisionError

    stand.pusher.push = fail
    stand.pusher.is_due = True

    assert stand.kernel.ask(Opcode.GETATTR)[0] == 0
    assert stand.kernel.ask(Opcode.GETATTR)[0] == 0


# Anything at all

PATHS = ("soft", "soft/v1", "soft/v1/plain", "soft/v1/large", "soft/v1/link", "soft/v1/many")
BODIES: Final[dict[int, st.SearchStrategy[bytes]]] = {
    Opcode.LOOKUP: st.sampled_from([b"soft", b"v1", b"plain", b"many", b"absent", b"x" * 256]).map(
        lambda name: name + b"\0"
    ),
    Opcode.READ: st.builds(read_in, st.integers(0, 60_000), st.sampled_from([0, 1, 4096, 131_072])),
    Opcode.READDIR: st.builds(read_in, st.integers(0, 301), st.sampled_from([0, 30, 4096, 65_536])),
    Opcode.READDIRPLUS: st.builds(read_in, st.integers(0, 301), st.sampled_from([0, 200, 4096, 65_536])),
    Opcode.GETXATTR: st.sampled_from([0, 2, 100]).map(
        lambda size: protocol.GETXATTR_IN.pack(size) + b"user.name\0"
    ),
    Opcode.LISTXATTR: st.sampled_from([0, 2, 100]).map(protocol.GETXATTR_IN.pack),
    Opcode.INTERRUPT: st.integers(0, 100).map(struct.Struct("=Q").pack),
    Opcode.INIT: st.just(protocol.INIT_IN.pack(7, 45, 1 << 17, 1 << 30, 0)),
}
NO_REPLY: Final = SILENT | {Opcode.INTERRUPT}
u64 = st.integers(0, (1 << 64) - 1)


@st.composite
def whole(draw: st.DrawFn) -> tuple[int, int, bytes, int]:
    """Draw a request as the kernel makes it: opcode, index of its inode among PATHS, body, unique."""
    opcode = draw(st.sampled_from(sorted(Opcode)))
    body = draw(BODIES.get(opcode, st.binary(max_size=64)))
    return opcode, draw(st.integers(-1, len(PATHS) - 1)), body, draw(u64)


@dataclass(frozen=True)
class Change:
    """What becomes of a request: bytes put in place of others, and an end that is cut off or added."""

    places: list[tuple[int, bytes]]
    cut: int
    added: bytes

    def of(self, message: bytes) -> bytes:
        changed = bytearray(message)
        for place, value in self.places:
            start = place % len(changed)
            changed[start : start + len(value)] = value
        return (bytes(changed[: max(len(changed) - self.cut, 1)]) + self.added)[:SLOT_LENGTH]


changes = st.builds(
    Change,
    st.lists(st.tuples(st.integers(0, 4096), st.binary(min_size=1, max_size=8)), max_size=3),
    st.sampled_from([0, 0, 0, 1, 8, 40]),
    st.sampled_from([b"", b"", b"", b"\0", b"\xff" * 9, bytes(SLOT_LENGTH)]),
)
messages = st.one_of(
    st.tuples(whole(), st.none()),
    st.tuples(whole(), changes),
    st.binary(min_size=1, max_size=300),
    st.binary(min_size=1, max_size=40).map(lambda seed: (seed * SLOT_LENGTH)[:SLOT_LENGTH]),
)
started_s: list[float] = []


@pytest.mark.warns(r"a request of \d+ bytes is none", "^INIT of")
@settings(max_examples=1500, deadline=None)
@given(
    drawn=st.lists(messages, min_size=1, max_size=20),
    held=st.sets(st.sampled_from([Kind.PACK, Kind.MANIFEST])),
)
def test_whatever_comes_gets_one_reply_and_leaves_no_trace(
    repository: Repository, inodes: list[Inode], drawn: list[object], held: set[Kind]
) -> None:
    started_s[:] = started_s or [time.monotonic()]
    if time.monotonic() - started_s[0] > FUZZ_S:
        return
    with standing(repository, list(held), slots=4) as stand:
        stand.initialise = lambda unique, body: stand.replies.answer(
            unique, (b"%r" % protocol.init_in(body),)
        )
        stand.wait = lambda waiting: stand.replies.refuse(waiting.unique, errno.EIO)
        stand.start()

        for message in (as_bytes(each, inodes) for each in drawn):
            stand.kernel.send_bytes(message)
            uniques = [unique for unique, _, _ in stand.kernel.settle()]

            assert uniques == expected(message)
            # One slot is read into, the last request takes another: two may wait.
            while len(stand.requests) > 2:
                stand.reader.free(stand.requests.pop(0).slot)

        stand.end()
        for waiting in stand.requests:
            stand.reader.free(waiting.slot)
        assert stand.left() == []
        assert stand.free_slots() == 4


@pytest.fixture(scope="module")
def inodes(repository: Repository) -> list[Inode]:
    return [*(find(repository, path) for path in PATHS), ROOT]


def as_bytes(drawn: object, inodes: list[Inode]) -> bytes:
    if isinstance(drawn, bytes):
        return drawn
    (opcode, index, body, unique), change = drawn
    message = request(opcode, inodes[index], body, unique)
    return message if change is None else change.of(message)


def expected(message: bytes) -> list[int]:
    """Return the marks of the replies that a message must get: one or none."""
    if len(message) < protocol.IN_HEADER.size:
        return []
    _, opcode, unique, *_ = protocol.IN_HEADER.unpack_from(message)
    return [] if opcode in NO_REPLY else [unique]
