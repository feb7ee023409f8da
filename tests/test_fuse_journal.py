"""This module tests the journal of requests in flight: its slots, and what a second server finds in them."""

import os
import struct
import sys
import threading
from collections.abc import Iterator

import pytest

from torrentfs.errors import FormatError
from torrentfs.fuse.journal import HEAD_LENGTH, SLOT_LENGTH, SLOTS_MAX, Journal, Negotiated

HEAD = struct.Struct("=8sIIQ")
MAGIC = b"tfsjrnl1"


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.create(4)
    yield made
    made.close()


def successor(journal: Journal) -> Journal:
    """Open the same memory once more, as the next server does."""
    return Journal(os.dup(journal.descriptor))


def fill(journal: Journal, slot: int, body: bytes) -> bytes:
    """Put a request into a slot, as the kernel's read does; return it."""
    request = (4 + len(body)).to_bytes(4, sys.byteorder) + body
    journal.buffer(slot)[: len(request)] = request
    return request


def taken(journal: Journal) -> list[int]:
    """Take all the slots that are free."""
    slots = []
    while (slot := journal.take()) is not None:
        slots.append(slot)
    return slots


def damaged(head: bytes, length: int) -> int:
    """Make memory of *length* bytes that begins with *head*; return its descriptor."""
    descriptor = os.memfd_create("damaged")
    os.pwrite(descriptor, head, 0)
    os.ftruncate(descriptor, length)
    return descriptor


def test_each_slot_is_taken_once_the_lowest_first(journal: Journal) -> None:
    assert taken(journal) == [0, 1, 2, 3]


def test_a_slot_that_is_free_again_is_taken_again(journal: Journal) -> None:
    taken(journal)

    journal.free(2)

    assert taken(journal) == [2]


def test_slots_do_not_overlap(journal: Journal) -> None:
    for slot in range(4):
        journal.buffer(slot)[:] = bytes([slot + 1]) * SLOT_LENGTH

    assert [bytes(journal.buffer(slot)) for slot in range(4)] == [
        bytes([slot + 1]) * SLOT_LENGTH for slot in range(4)
    ]


def test_what_is_in_use_is_left_to_the_next_server(journal: Journal) -> None:
    taken(journal)
    first, second = fill(journal, 1, b"first"), fill(journal, 3, b"second")

    later = successor(journal)

    assert [(slot, bytes(message)) for slot, message in later.left()] == [(1, first), (3, second)]
    assert taken(later) == [0, 2]


def test_what_was_answered_is_not_left(journal: Journal) -> None:
    for slot in taken(journal):
        fill(journal, slot, b"request")
    journal.free(2)

    later = successor(journal)

    assert [slot for slot, _ in later.left()] == [0, 1, 3]


def test_a_slot_that_was_taken_for_a_request_that_never_came_is_free_to_the_next_server(
    journal: Journal,
) -> None:
    taken(journal)

    assert taken(successor(journal)) == [0, 1, 2, 3]


def test_what_is_left_is_free_once_the_next_server_says_so(journal: Journal) -> None:
    fill(journal, taken(journal)[0], b"request")
    later = successor(journal)

    for slot, _ in list(later.left()):
        later.free(slot)

    assert list(later.left()) == []
    assert list(successor(later).left()) == []


def test_a_request_that_says_it_is_longer_than_a_slot_ends_with_it(journal: Journal) -> None:
    journal.buffer(0)[:4] = b"\xff" * 4

    [(_, message)] = successor(journal).left()

    assert len(message) == SLOT_LENGTH


def test_what_was_negotiated_is_there_for_the_next_server(journal: Journal) -> None:
    assert journal.negotiated is None

    journal.negotiated = Negotiated(45, 1 << 39 | 1)

    assert successor(journal).negotiated == Negotiated(45, 1 << 39 | 1)
    assert taken(successor(journal)) == [0, 1, 2, 3]


def test_what_a_closed_journal_held_stays(journal: Journal) -> None:
    first = successor(journal)
    request = fill(first, 0, b"request")

    first.close()

    assert [bytes(message) for _, message in successor(journal).left()] == [request]


def test_a_journal_closes_although_somebody_looks_at_a_request(journal: Journal) -> None:
    first = successor(journal)
    request = fill(first, 0, b"request")
    looked_at = first.buffer(0)[: len(request)]

    first.close()

    assert bytes(looked_at) == request
    with pytest.raises(OSError):
        os.fstat(first.descriptor)


@pytest.mark.parametrize("asked", [SLOTS_MAX, SLOTS_MAX + 1, 1_000_000])
def test_a_journal_of_any_size_that_settings_allow_can_be_made(asked: int) -> None:
    journal = Journal.create(asked)

    assert len(taken(journal)) == SLOTS_MAX

    journal.close()


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"", 0),
        (b"", HEAD_LENGTH),
        (HEAD.pack(MAGIC, 1, 0, 0), HEAD_LENGTH - 1),
        (HEAD.pack(b"tfsjrnl2", 1, 0, 0), HEAD_LENGTH + SLOT_LENGTH),
        (HEAD.pack(MAGIC, 0, 0, 0), HEAD_LENGTH + SLOT_LENGTH),
        (HEAD.pack(MAGIC, 2, 0, 0), HEAD_LENGTH + 2 * SLOT_LENGTH - 1),
        (HEAD.pack(MAGIC, SLOTS_MAX + 1, 0, 0), HEAD_LENGTH + (SLOTS_MAX + 1) * SLOT_LENGTH),
        (HEAD.pack(MAGIC, (1 << 32) - 1, 0, 0), 1 << 40),
    ],
    ids=["empty", "zeros", "cut", "of another version", "no slots", "a slot cut", "too many", "hostile"],
)
def test_what_is_no_journal_is_refused(head: bytes, length: int) -> None:
    descriptor = damaged(head, length)

    with pytest.raises(FormatError):
        Journal(descriptor)

    os.close(descriptor)


def test_what_cannot_be_mapped_is_no_journal() -> None:
    reading, writing = os.pipe()

    with pytest.raises(FormatError):
        Journal(reading)
    os.close(reading)
    with pytest.raises(FormatError):
        Journal(reading)

    os.close(writing)


def test_memory_beyond_the_slots_is_none_of_them() -> None:
    descriptor = damaged(HEAD.pack(MAGIC, 1, 0, 0), HEAD_LENGTH + 3 * SLOT_LENGTH)

    journal = Journal(descriptor)

    assert list(journal.left()) == []
    assert taken(journal) == [0]
    journal.close()


def test_two_threads_that_take_and_free_never_have_the_same_slot() -> None:
    journal = Journal.create(8)
    holders = [threading.Lock() for _ in range(8)]
    doubly: list[int] = []

    def work() -> None:
        for _ in range(20_000):
            slot = journal.take()
            if slot is None:
                continue
            if not holders[slot].acquire(blocking=False):
                doubly.append(slot)
                return
            holders[slot].release()
            journal.free(slot)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert doubly == []
    assert sorted(taken(journal)) == list(range(8))
    journal.close()
