"""This module keeps the requests in flight where the next server finds them if this one dies.

A journal is shared memory (memfd_create(2)) of slots. The kernel's `read` fills a slot itself, so that no
request falls between the kernel and us. A slot is in use while its first four bytes, the length field of the
request (linux/fuse.h, fuse_in_header), are not zero: the kernel writes them, and they are zeroed once the
answer is out. A server that dies between answering and zeroing leaves a request that its successor answers
again; the kernel refuses that (ENOENT), and nobody is harmed.

The head says what was negotiated with the kernel: zero until INIT is answered.
"""

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from torrentfs.errors import FormatError
from torrentfs.fuse.protocol import BUFFER_LENGTH_MIN

HEAD_LENGTH: Final = 4096
SLOT_LENGTH: Final = BUFFER_LENGTH_MIN
"""No request to a read-only tree is longer: only data to be written would be (`max_write` is 4096)."""
SLOTS_MAX: Final = 1 << 17
_HEAD: Final = struct.Struct("=8sIIQ")
"""Magic, number of slots, negotiated minor version, negotiated flags."""
_MAGIC: Final = b"tfsjrnl1"
_FREE: Final = bytes(4)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What INIT agreed on: the protocol's *minor* version, and the *flags* that the kernel offered."""

    minor: int
    flags: int


class Journal:
    """The slots of one mount. Any thread may `take` and `free`: a list's own append and pop are atomic."""

    def __init__(self, descriptor: int) -> None:
        """Take over the journal in *descriptor*, which is ours from now on; `create` makes one.

        Raises:
            FormatError: it is none.
        """
        self.descriptor = descriptor
        try:
            length = os.fstat(descriptor).st_size
            self._map = mmap.mmap(descriptor, max(length, HEAD_LENGTH))
        except (OSError, ValueError) as error:
            raise FormatError(f"not a journal of requests: {error}") from None
        magic, count, _, _ = _HEAD.unpack_from(self._map)
        if magic != _MAGIC or not 0 < count <= SLOTS_MAX or HEAD_LENGTH + count * SLOT_LENGTH > length:
            raise FormatError("not a journal of requests")
        self._count = count
        self._view = memoryview(self._map)
        self._slots: dict[int, memoryview] = {}
        # The lowest first: the pages of those that were never needed are never allocated.
        self._unused = [slot for slot in range(count - 1, -1, -1) if not self._is_used(slot)]

    @classmethod
    def create(cls, slot_count: int) -> "Journal":
        """Make an empty journal of *slot_count* slots, or SLOTS_MAX if that is fewer.

        Raises:
            OSError: no memory, or no descriptor.
        """
        slot_count = min(slot_count, SLOTS_MAX)
        descriptor = os.memfd_create("torrentfs-journal", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, HEAD_LENGTH + slot_count * SLOT_LENGTH)
        os.pwrite(descriptor, _HEAD.pack(_MAGIC, slot_count, 0, 0), 0)
        return cls(descriptor)

    @property
    def negotiated(self) -> Negotiated | None:
        """What INIT agreed on; None before it was answered."""
        _, _, minor, flags = _HEAD.unpack_from(self._map)
        return Negotiated(minor, flags) if minor else None

    @negotiated.setter
    def negotiated(self, agreed: Negotiated) -> None:
        magic, count, _, _ = _HEAD.unpack_from(self._map)
        _HEAD.pack_into(self._map, 0, magic, count, agreed.minor, agreed.flags)

    def take(self) -> int | None:
        """Return a free slot, ours until `free`; None if none is."""
        try:
            return self._unused.pop()
        except IndexError:
            return None

    def buffer(self, slot: int) -> memoryview:
        """Return the memory of a slot."""
        found = self._slots.get(slot)
        if found is None:
            start = HEAD_LENGTH + slot * SLOT_LENGTH
            found = self._slots[slot] = self._view[start : start + SLOT_LENGTH]
        return found

    def free(self, slot: int) -> None:
        """Take note that the request in a slot needs no answer any more."""
        self.buffer(slot)[:4] = _FREE
        self._unused.append(slot)

    def left(self) -> Iterator[tuple[int, memoryview]]:
        """Iterate over the slots that a predecessor left in use, each with its request."""
        unused = set(self._unused)
        for slot in range(self._count):
            if slot not in unused:
                buffer = self.buffer(slot)
                length = int.from_bytes(buffer[:4], sys.byteorder)
                yield slot, buffer[: min(length, SLOT_LENGTH)]

    def close(self) -> None:
        """Let go of the memory and the descriptor; what is in it stays for who else has it."""
        for view in self._slots.values():
            view.release()
        self._view.release()
        with suppress(BufferError):  # a request that somebody still looks at keeps the memory
            self._map.close()
        os.close(self.descriptor)

    def _is_used(self, slot: int) -> bool:
        # Not through the map: to look at memory that was never written allocates it, 16 MB for all slots.
        return os.pread(self.descriptor, len(_FREE), HEAD_LENGTH + slot * SLOT_LENGTH) != _FREE
