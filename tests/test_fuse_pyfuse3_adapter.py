"""This module tests what pyfuse3 gets from our handlers: anything but a FUSEError would end the mount."""

import errno
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pyfuse3
import pytest
import trio
from local_content import MemoryLedger

from torrentfs.config import MountSettings
from torrentfs.errors import CacheError
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.pyfuse3_adapter import Session, _forget, _is_worth_a_line, _Operations
from torrentfs.repository.metainfo import InfoHash, Kind, NotCached, TorrentRef
from torrentfs.tree import ROOT, Attributes, Changes, Inode, Tree

MANIFEST = TorrentRef(InfoHash(bytes(32)), 1 << 20, Kind.MANIFEST)
INODE = 5 << 24 | 7


class Failing:
    """A content on a disk that fails."""

    def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
        raise CacheError("cannot read: Input/output error")

    def frame(self, ref: TorrentRef, offset: int, stored: int) -> bytes:
        raise CacheError("cannot read: Input/output error")

    def expect(self, refs: Sequence[TorrentRef]) -> None:
        pass

    def needing(self, wanted: Sequence[NotCached]) -> AbstractContextManager[None]:
        return nullcontext()

    async def ensure(self, missing: NotCached, deadline: float) -> None:
        raise CacheError("cannot read: Input/output error")


class Absurd(Tree):
    """A tree whose files are larger than the kernel can be told."""

    def attributes(self, inode: Inode) -> Attributes:
        return Attributes(inode, 0o100644, 1, 1 << 64, 0, 0)

    def lookup(self, parent: Inode, name: bytes) -> Attributes | None:
        return self.attributes(parent)


def operations(kind: type[Tree]) -> _Operations:
    ledger = MemoryLedger()
    ledger.record({5: MANIFEST})
    content = Failing()
    return _Operations(Filesystem(kind(content, ledger, (0, 0)), content, MountSettings()))


CALLS: dict[str, Callable[[_Operations], Awaitable[object]]] = {
    "lookup": lambda made: made.lookup(INODE, b"name", None),
    "getattr": lambda made: made.getattr(INODE, None),
    "readlink": lambda made: made.readlink(INODE, None),
    "read": lambda made: made.read(INODE, 0, 4096),
    "readdir": lambda made: made.readdir(INODE, 0, None),
    "getxattr": lambda made: made.getxattr(INODE, b"user.name", None),
    "listxattr": lambda made: made.listxattr(INODE, None),
}


@pytest.mark.parametrize(
    ("text", "code", "worth"),
    [
        ("fuse_read(): fuse_reply_* failed with %s", errno.ENOENT, False),
        ("fuse_read(): fuse_reply_* failed with %s", errno.EINVAL, True),
        ("fuse_setattr(): clock_gettime(CLOCK_REALTIME) failed with %s", errno.ENOENT, True),
    ],
)
def test_an_answer_that_nobody_waits_for_is_no_line_in_the_log(text: str, code: int, worth: bool) -> None:
    record = logging.LogRecord("pyfuse3", logging.ERROR, "", 0, text, (os.strerror(code),), None)

    assert _is_worth_a_line(record) is worth


@pytest.mark.warns("ordinal 5 .* failed: cannot read")
@pytest.mark.parametrize("call", CALLS)
async def test_a_disk_that_fails_is_eio_and_no_end_of_the_mount(call: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await CALLS[call](operations(Tree))

    assert caught.value.errno == errno.EIO


@pytest.mark.warns("met a fault of ours")
@pytest.mark.parametrize("call", ["lookup", "getattr"])
async def test_what_the_kernel_cannot_be_told_is_eio_and_no_end_of_the_mount(call: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await CALLS[call](operations(Absurd))

    assert caught.value.errno == errno.EIO


@pytest.mark.warns("and so did saying so")
async def test_a_fault_in_reporting_a_failure_is_eio_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inode: Inode) -> bytes:
        raise ZeroDivisionError

    made = operations(Tree)
    monkeypatch.setattr(made._filesystem.tree, "path", fail)

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await made.getattr(INODE, None)

    assert caught.value.errno == errno.EIO


@pytest.mark.warns("takes long to forget")
async def test_a_kernel_that_does_not_forget_holds_no_refresh_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(pyfuse3, "invalidate_entry", lambda parent, name: answered.wait(10))
    monkeypatch.setattr("torrentfs.fuse.pyfuse3_adapter.FORGET_DEADLINE_S", 0.05)
    session = Session(operations(Tree)._filesystem, tmp_path, MountSettings())

    with trio.fail_after(5):
        await session.forget(Changes(((ROOT, b"name"),), ()))
        await session.forget(Changes(((ROOT, b"other"),), ()))

    answered.set()


def test_what_the_kernel_refuses_to_forget_does_not_keep_it_from_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []

    def refuse(parent: int, name: bytes) -> None:
        told.append((parent, name))
        raise OSError(errno.ENOTDIR if name == b"first" else errno.ENOENT, "refused")

    monkeypatch.setattr(pyfuse3, "invalidate_entry", refuse)
    monkeypatch.setattr(pyfuse3, "invalidate_inode", told.append)

    _forget(Changes(((ROOT, b"first"), (ROOT, b"second")), (ROOT,)))

    assert told == [(ROOT, b"first"), (ROOT, b"second"), ROOT]
