"""This module tests what is pushed into the page cache: which files, and by which process.

The process is a real one on a real mount; where only decisions are looked at, a fake takes its orders.
"""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from local_content import LocalContent, MemoryLedger
from mounts import Mount, mounted
from trees import open_revision

from torrentfs.config import MountSettings
from torrentfs.errors import CacheError
from torrentfs.fuse import kernel, push_process, pusher
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.push_process import MESSAGE_MAX, File, Frame
from torrentfs.fuse.pusher import BUDGET, FILES_MAX, NEAR, RESTART_S, RUN_MIN, SIZE_MAX, Pusher
from torrentfs.repository.metainfo import InfoHash, Kind, NotCached, TorrentRef
from torrentfs.repository.pack import decode_frame
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository
from torrentfs.tree import ROOT, Inode, Slice, Tree

WAIT_S = 30.0
"""Longer than anything here takes: who waits this long has hung."""
FIRST = TorrentRef(InfoHash(bytes(32)), 1 << 30, Kind.PACK)
SECOND = TorrentRef(InfoHash(b"\1" * 32), 1 << 30, Kind.PACK)
STORED = 1000
FILES = 40


class Files:
    """A filesystem of one directory: inode and slice of each file. What `absent` has is not here."""

    def __init__(self, *slices: Slice) -> None:
        self.slices = {Inode(number): wanted for number, wanted in enumerate(slices, 1)}
        self.absent: set[TorrentRef] = set()
        self.error: Exception | None = None
        self.located: list[Slice] = []
        self.looked = 0

    def following(self, inode: Inode, size_max: int) -> Iterator[tuple[Inode, Slice]]:
        assert size_max == SIZE_MAX
        for number, wanted in self.slices.items():
            if number > inode:
                if self.error:
                    raise self.error
                self.looked += 1
                yield number, wanted

    def locate(self, wanted: Slice) -> Path | None:
        assert wanted.ref
        self.located.append(wanted)
        return None if wanted.ref in self.absent else Path(f"/{wanted.ref.info_hash.hex()}")


class Process:
    """A process that takes orders and carries none out."""

    made: list["Process"]

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **options: Any) -> None:
        self.command = command
        self.passed = pass_fds
        self.orders = socket.socket(fileno=os.dup(pass_fds[0]))
        self.made.append(self)

    def taken(self) -> list[list[Frame]]:
        """Return the orders that have come."""
        orders = []
        while select.select([self.orders], [], [], 0)[0] and (message := self.orders.recv(MESSAGE_MAX)):
            orders.append(msgspec.msgpack.decode(message, type=list[Frame]))
        return orders


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    made: list[Process] = []
    monkeypatch.setattr(Process, "made", made, raising=False)
    monkeypatch.setattr(subprocess, "Popen", Process)
    yield made
    for process in made:
        process.orders.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the pusher takes for the time."""
    now = [1000.0]
    monkeypatch.setattr(pusher.time, "monotonic", lambda: now[0])
    return now


def at(offset: int, length: int = 100, ref: TorrentRef | None = FIRST, skip: int = 0) -> Slice:
    return Slice(ref, offset, STORED, skip, length)


@contextmanager
def pushing(filesystem: Any, started: list[Any] | None = None) -> Iterator[Pusher]:
    made = Pusher(filesystem, 99, [].append if started is None else started.append)
    yield made
    made.close()


def read(pushes: Pusher, inode: int, *slices: Slice) -> bool:
    """Read a file as the reader's thread does; tell whether a push was due."""
    pushes.was_read(Inode(inode), slices)
    due = pushes.is_due
    if due:
        pushes.push()
    return due


def walk(pushes: Pusher, files: Files, last: int) -> list[int]:
    """Read all files up to *last* in turn; return those after which a push was due."""
    return [
        number for number, wanted in files.slices.items() if number <= last and read(pushes, number, wanted)
    ]


def pushed(process: Process) -> list[int]:
    return [file.inode for order in process.taken() for frame in order for file in frame.files]


# When


def test_a_run_of_reads_makes_the_next_files_due(processes: list[Process]) -> None:
    files = Files(*(at(number) for number in range(20)))
    with pushing(files) as pushes:
        assert walk(pushes, files, RUN_MIN) == []
        assert processes == []

        assert walk(pushes, files, RUN_MIN + 1) == [RUN_MIN + 1]

        assert pushed(processes[0]) == list(range(RUN_MIN + 2, 21))


@pytest.mark.parametrize(
    ("jump", "due"),
    [
        (at(500), True),
        (at(500 + NEAR), True),
        (at(501 + NEAR), False),
        (at(499), False),
        (at(500, ref=SECOND), False),
    ],
    ids=["same frame", "near", "far", "back", "another pack"],
)
def test_only_reads_forward_in_one_pack_are_a_run(jump: Slice, due: bool, processes: list[Process]) -> None:
    with pushing(Files()) as pushes:
        for number in range(RUN_MIN):
            assert not read(pushes, number, at(500))

        assert read(pushes, RUN_MIN, jump) is due


def test_after_a_jump_a_run_begins_anew(processes: list[Process]) -> None:
    with pushing(Files()) as pushes:
        for number in range(RUN_MIN):
            read(pushes, number, at(500))
        read(pushes, 50, at(0))

        due = [read(pushes, 60 + number, at(number)) for number in range(RUN_MIN)]

        assert due == [False] * (RUN_MIN - 1) + [True]


def test_reads_of_many_frames_and_of_holes_are_no_run_and_end_none(processes: list[Process]) -> None:
    with pushing(Files()) as pushes:
        for number in range(2 * RUN_MIN):
            assert not read(pushes, number, at(0, ref=None))
            assert not read(pushes, number, at(0), at(1))
            assert not read(pushes, number)
        for number in range(RUN_MIN):
            read(pushes, number, at(number))
            read(pushes, number, at(0, ref=None))

        assert read(pushes, RUN_MIN, at(RUN_MIN))


def test_what_was_pushed_is_not_pushed_again(processes: list[Process]) -> None:
    length = BUDGET // 8
    files = Files(*(at(number, length) for number in range(40)))
    with pushing(files) as pushes:
        due = walk(pushes, files, 40)

        assert due == [5, 14, 23, 32]
        assert pushed(processes[0]) == [*range(6, 14), *range(15, 23), *range(24, 32), *range(33, 41)]


def test_where_nothing_follows_it_is_not_looked_again(processes: list[Process]) -> None:
    files = Files(*(at(number) for number in range(5)))
    with pushing(files) as pushes:
        assert walk(pushes, files, 5) == [5]

        assert not any(read(pushes, 5, at(10 + number)) for number in range(20))
        assert processes == []


# What


def test_files_are_pushed_frame_by_frame(processes: list[Process]) -> None:
    files = Files(*[at(7)] * 5, at(7, 10, skip=90), at(7, 20, skip=100), at(8, 30))
    with pushing(files) as pushes:
        walk(pushes, files, 5)

    path = os.fsencode(f"/{FIRST.info_hash.hex()}")
    assert processes[0].taken() == [
        [
            Frame(path, 7, STORED, [File(6, 90, 10), File(7, 100, 20)]),
            Frame(path, 8, STORED, [File(8, 0, 30)]),
        ]
    ]


def test_frames_of_two_packs_at_one_offset_are_two(processes: list[Process]) -> None:
    files = Files(*[at(0)] * 5, at(0, ref=SECOND), at(0), at(0, ref=SECOND))
    with pushing(files) as pushes:
        walk(pushes, files, 5)

    [frames] = processes[0].taken()
    assert [(frame.path, [file.inode for file in frame.files]) for frame in frames] == [
        (os.fsencode(f"/{SECOND.info_hash.hex()}"), [6, 8]),
        (os.fsencode(f"/{FIRST.info_hash.hex()}"), [7]),
    ]
    assert len(files.located) == 2


def test_no_more_is_pushed_than_the_budget(processes: list[Process]) -> None:
    files = Files(*(at(number, BUDGET // 4 + 1) for number in range(20)))
    with pushing(files) as pushes:
        walk(pushes, files, 5)

    assert pushed(processes[0]) == [6, 7, 8]


def test_of_tiny_files_a_bounded_number_is_looked_at(processes: list[Process]) -> None:
    files = Files(*(at(number // 100, 1) for number in range(20_000)))
    with pushing(files) as pushes:
        walk(pushes, files, 5)

    assert pushed(processes[0]) == list(range(6, 6 + FILES_MAX))
    assert files.looked == FILES_MAX


def test_what_is_not_here_ends_what_is_pushed(processes: list[Process]) -> None:
    files = Files(*[at(0)] * 7, at(0, ref=SECOND), at(1))
    files.absent.add(SECOND)
    with pushing(files) as pushes:
        walk(pushes, files, 5)

    assert pushed(processes[0]) == [6, 7]


@pytest.mark.parametrize("error", [NotCached(FIRST, 0, 1), CacheError("the disk is broken")])
def test_what_cannot_be_looked_at_is_not_pushed(processes: list[Process], error: Exception) -> None:
    files = Files(*(at(number) for number in range(9)))
    files.error = error
    with pushing(files) as pushes:
        walk(pushes, files, 9)

    assert processes == []


# The process, from our end


def test_the_process_is_given_its_orders_and_the_device(processes: list[Process]) -> None:
    started: list[Process] = []
    files = Files(*(at(number) for number in range(9)))
    with pushing(files, started) as pushes:
        walk(pushes, files, 5)

    [process] = processes
    assert started == [process]
    assert list(process.command[-2:]) == [str(process.passed[0]), "99"]
    assert process.passed[1] == 99


def test_a_process_that_is_busy_is_not_waited_for(processes: list[Process]) -> None:
    files = Files(*(at(number) for number in range(20)))
    with pushing(files) as pushes:
        walk(pushes, files, 5)
        assert pushes._socket
        with suppress(BlockingIOError):
            while True:
                pushes._socket.send(bytes(1000))
        pushes._pushed = range(0)

        # Nothing counts as pushed until it takes orders again.
        assert [read(pushes, 6, at(6)) for _ in range(3)] == [True] * 3
        while select.select([processes[0].orders], [], [], 0)[0]:
            processes[0].orders.recv(MESSAGE_MAX)
        assert read(pushes, 6, at(6))
        assert not read(pushes, 6, at(6))


def test_a_process_that_ended_is_started_again_but_not_at_once(
    processes: list[Process], clock: list[float]
) -> None:
    files = Files(*(at(number) for number in range(3000)))
    with pushing(files) as pushes:
        walk(pushes, files, 5)
        processes[0].orders.close()

        for number in range(1000, 1010):
            read(pushes, number, at(number))
        clock[0] += RESTART_S - 0.1
        read(pushes, 1100, at(1100))
        assert len(processes) == 1
        clock[0] += 0.1
        read(pushes, 1200, at(1200))

        assert pushed(processes[1]) == list(range(1201, 1201 + FILES_MAX))


def test_closing_ends_what_the_process_waits_for(processes: list[Process]) -> None:
    files = Files(*(at(number) for number in range(9)))
    with pushing(files) as pushes:
        walk(pushes, files, 5)
        processes[0].taken()

        pushes.close()

        assert processes[0].orders.recv(MESSAGE_MAX) == b""


@pytest.mark.warns("walks are slower than they could be: .*")
@pytest.mark.parametrize("missing", ["subprocess.Popen", "socket.socketpair"])
def test_without_a_process_nothing_is_pushed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(missing, fail)
    files = Files(*(at(number) for number in range(20)))
    with pushing(files) as pushes:
        assert walk(pushes, files, 20)


# The bytes

SOURCE = "source"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A directory whose files lie in two packs by turns, in a frame at offset 0 of each."""
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    source = directory / SOURCE
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:02}").write_bytes(bytes([number]) * (3000 + number))
    publish(made, source, "soft/v1")
    for number in range(0, FILES, 2):
        (source / f"{number:02}").write_bytes(bytes([200 - number]) * (2000 + number))
    publish(made, source, "soft/v1")
    return made


def content(repository: Repository, number: int) -> bytes:
    return (repository.directory.parent / SOURCE / f"{number:02}").read_bytes()


def orders(repository: Repository) -> dict[int, tuple[Inode, Slice, Path]]:
    """Return each file's inode, its slice, and the pack file that it lies in."""
    here = LocalContent(repository.public)
    tree = Tree(here, MemoryLedger(), (0, 0))
    tree.swap(repository.catalog())
    inode = ROOT
    for name in (b"soft", b"v1"):
        found = tree.lookup(inode, name)
        assert found
        inode = found.inode
    found_all = {}
    for _, name, shown in tree.readdir(inode):
        [wanted] = tree.plan(shown.inode, 0, shown.size)
        path = here.locate(wanted.ref, wanted.offset, wanted.stored)
        found_all[int(name)] = shown.inode, wanted, path
    return found_all


def order(repository: Repository, *numbers: int) -> bytes:
    """Make the order to push some files, each with a frame of its own."""
    known = orders(repository)
    frames = []
    for number in numbers:
        inode, wanted, path = known[number]
        files = [File(inode, wanted.skip, wanted.length)]
        frames.append(Frame(os.fsencode(path), wanted.offset, wanted.stored, files))
    return msgspec.msgpack.encode(frames)


def test_the_files_here_lie_in_two_packs_at_one_offset(repository: Repository) -> None:
    revision = open_revision(repository.public, repository.catalog().versions["soft/v1"].current.ref)
    places = {(wanted.ref, wanted.offset) for _, wanted, _ in orders(repository).values()}

    assert len(revision.manifest.packs) == 2
    assert len(places) == 2
    assert len({offset for _, offset in places}) == 1


def test_what_is_pushed_is_what_a_read_would_get(repository: Repository, processes: list[Process]) -> None:
    here = LocalContent(repository.public)
    tree = Tree(here, MemoryLedger(), (0, 0))
    tree.swap(repository.catalog())
    known = orders(repository)
    numbers = {inode: number for number, (inode, _, _) in known.items()}
    with pushing(Filesystem(tree, here, MountSettings())) as pushes:
        for number in range(0, 2 * RUN_MIN + 2, 2):
            inode, wanted, _ = known[number]
            read(pushes, inode, wanted)

    [frames] = processes[0].taken()
    shown = {}
    for frame in frames:
        with open(frame.path, "rb") as pack:  # noqa: PTH123 - bytes
            data = decode_frame(os.pread(pack.fileno(), frame.stored, frame.offset))
        for file in frame.files:
            shown[numbers[Inode(file.inode)]] = data[file.skip : file.skip + file.length]
    assert shown == {number: content(repository, number) for number in range(2 * RUN_MIN + 1, FILES)}


# The process itself


@contextmanager
def process_of(*descriptors: int) -> Iterator[tuple[socket.socket, "subprocess.Popen[bytes]"]]:
    """Start the process that pushes over the device; give what it takes orders from."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        made = subprocess.Popen(
            [sys.executable, "-P", "-m", push_process.__name__, str(its.fileno()), str(descriptors[0])],
            pass_fds=[its.fileno(), descriptors[0]],
        )
        its.close()
        try:
            yield ours, made
        finally:
            ours.close()
            made.kill()
            made.wait(WAIT_S)


@pytest.fixture
def mount(repository: Repository, tmp_path: Path) -> Iterator[Mount]:
    with mounted(repository.public, repository.catalog(), tmp_path) as made:
        yield made


def known(mount: Mount) -> list[Path]:
    """Make the kernel know every file's inode; return their paths."""
    paths = [mount.path / f"soft/v1/{number:02}" for number in range(FILES)]
    for path in paths:
        path.stat()
    return paths


def until(mount: Mount, waiting: int) -> None:
    """Return when so many requests wait."""
    end = time.monotonic() + WAIT_S
    while mount.stats()["waiting"] != waiting:
        assert time.monotonic() < end, mount.stats()
        time.sleep(0.02)


@pytest.mark.fuse
@pytest.mark.root
class TestOnAMount:
    """What the kernel makes of it."""

    def test_what_is_pushed_is_read_without_the_server(self, mount: Mount, repository: Repository) -> None:
        paths = known(mount)
        with process_of(mount.descriptors[0]) as (socket_, process):
            socket_.send(order(repository, *range(FILES)))

            # What was ordered is done first.
            socket_.close()

            assert process.wait(WAIT_S) == 0
        before = mount.stats()["bytes_read"]
        assert [path.read_bytes() for path in paths] == [content(repository, n) for n in range(FILES)]
        assert mount.stats()["bytes_read"] == before

    def test_what_the_kernel_does_not_know_keeps_nothing_else_from_it(
        self, mount: Mount, repository: Repository
    ) -> None:
        inode, wanted, path = orders(repository)[3]
        stranger = File(inode + (1 << 23), 0, 5)
        files = [File(inode, wanted.skip, wanted.length), stranger]
        frame = Frame(os.fsencode(path), wanted.offset, wanted.stored, files)
        shown = known(mount)[3]
        with process_of(mount.descriptors[0]) as (socket_, process):
            socket_.send(msgspec.msgpack.encode([frame]))
            socket_.close()
            assert process.wait(WAIT_S) == 0
        before = mount.stats()["bytes_read"]

        assert shown.read_bytes() == content(repository, 3)

        assert mount.stats()["bytes_read"] == before

    def test_what_is_gone_or_damaged_is_passed_over(self, mount: Mount, repository: Repository) -> None:
        inode, wanted, path = orders(repository)[3]
        files = [File(inode, wanted.skip, wanted.length)]
        bad = [
            Frame(b"/nowhere", wanted.offset, wanted.stored, files),
            Frame(os.fsencode(path), wanted.offset + 1, wanted.stored, files),
            Frame(os.fsencode(path), wanted.offset, wanted.stored, [File(inode, 1 << 30, 10)]),
        ]
        shown = known(mount)
        with process_of(mount.descriptors[0]) as (socket_, process):
            socket_.send(msgspec.msgpack.encode(bad))
            socket_.send(order(repository, 4))
            socket_.close()
            assert process.wait(WAIT_S) == 0
        before = mount.stats()["bytes_read"]

        assert shown[4].read_bytes() == content(repository, 4)

        assert mount.stats()["bytes_read"] == before
        assert shown[3].read_bytes() == content(repository, 3)

    def test_it_ends_when_whoever_gave_orders_is_gone(self, mount: Mount) -> None:
        with process_of(mount.descriptors[0]) as (socket_, process):
            socket_.close()

            assert process.wait(WAIT_S) == 0

    def test_a_mount_that_was_cut_off_does_not_disturb_it(self, mount: Mount, repository: Repository) -> None:
        known(mount)
        with process_of(mount.descriptors[0]) as (socket_, process):
            kernel.abort(kernel.device_of(mount.path))

            socket_.send(order(repository, *range(FILES)))
            socket_.close()

            assert process.wait(WAIT_S) == 0

    def test_a_push_that_waits_for_a_page_keeps_no_server_from_dying(
        self, mount: Mount, repository: Repository
    ) -> None:
        shown = known(mount)[3]
        mount.tell("hold pack")
        job = subprocess.Popen(["cat", shown], stdout=subprocess.PIPE)
        until(mount, 1)
        with process_of(mount.descriptors[0]) as (socket_, process):
            socket_.send(order(repository, 3))
            socket_.close()

            mount.process.kill()
            mount.process.wait(WAIT_S)
            mount.succeed()

            assert job.communicate(timeout=WAIT_S)[0] == content(repository, 3)
            assert process.wait(WAIT_S) == 0
