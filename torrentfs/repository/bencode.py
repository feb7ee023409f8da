"""This module reads and writes bencode (BEP 3), strictly and within limits; it gives values no meaning."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torrentfs.errors import FormatError

Value: TypeAlias = "int | bytes | list[Value] | dict[bytes, Value]"

DEPTH_MAX = 16
ITEM_COUNT_MAX = 4096
"""Values in one document: a hostile ``lelele…`` costs thirty times its own length in memory."""
INTEGER_DIGITS_MAX = 19
STRING_DIGITS_MAX = 10


def encode(value: Value) -> bytes:
    """Bencode *value* in its only canonical form."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, list):
        return b"l%be" % b"".join(map(encode, value))
    return join({key: encode(item) for key, item in value.items()})


def join(items: Mapping[bytes, bytes]) -> bytes:
    """Make a dictionary of values that are bencoded already."""
    return b"d%be" % b"".join(encode(key) + items[key] for key in sorted(items))


def decode(data: bytes) -> Value:
    """Read one canonical value that fills *data*.

    Raises:
        FormatError: anything but canonical bencode, or more than the limits of this module.
    """
    reader = _Reader(data)
    value = reader.value(0)
    reader.expect_end()
    return value


def split(data: bytes) -> dict[bytes, bytes]:
    """Read the dictionary that fills *data* into the raw bytes of its values, checked like `decode`'s.

    Raises:
        FormatError: like `decode`.
    """
    reader = _Reader(data)
    if reader.byte() != b"d":
        raise FormatError("bencode: a dictionary is wanted")
    spans = {}
    for key in reader.each_key():
        start = reader.position
        reader.value(1)
        spans[key] = data[start : reader.position]
    reader.expect_end()
    return spans


class _Reader:
    """A position in a document, which moves on past each value."""

    __slots__ = ("data", "items", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.items = 0

    def byte(self) -> bytes:
        start = self.position
        self.position = start + 1
        return self.data[start : start + 1]

    def expect_end(self) -> None:
        if self.position != len(self.data):
            raise FormatError(f"bencode: {len(self.data) - self.position} bytes follow the end")

    def value(self, depth: int) -> Value:
        self.items += 1
        if self.items > ITEM_COUNT_MAX or depth > DEPTH_MAX:
            raise FormatError("bencode: too many or too deeply nested values")
        start = self.position
        kind = self.byte()
        if kind == b"i":
            return self.number(b"e", INTEGER_DIGITS_MAX, signed=True)
        if kind == b"l":
            return self.items_of_list(depth + 1)
        if kind == b"d":
            return {key: self.value(depth + 1) for key in self.each_key()}
        self.position = start
        return self.string()

    def items_of_list(self, depth: int) -> list[Value]:
        items = []
        while self.data[self.position : self.position + 1] != b"e":
            items.append(self.value(depth))
        self.position += 1
        return items

    def each_key(self) -> Iterator[bytes]:
        """Yield each key of a dictionary, up to its end; the caller reads the value in between."""
        last: bytes | None = None
        while self.data[self.position : self.position + 1] != b"e":
            key = self.string()
            if last is not None and key <= last:
                raise FormatError("bencode: keys that repeat or are not sorted")
            last = key
            yield key
        self.position += 1

    def string(self) -> bytes:
        length = self.number(b":", STRING_DIGITS_MAX, signed=False)
        start = self.position
        if length > len(self.data) - start:
            raise FormatError("bencode: a string runs past the end")
        self.position = start + length
        return self.data[start : self.position]

    def number(self, end: bytes, digits_max: int, *, signed: bool) -> int:
        """Read digits up to *end*; there is one way to write a number: no leading zeros, no ``-0``."""
        start = self.position
        stop = self.data.find(end, start, start + digits_max + 2)
        text = self.data[start:stop] if stop >= 0 else b""
        digits = text[1:] if signed and text.startswith(b"-") else text
        if not digits.isdigit() or len(digits) > digits_max or (text != b"0" and digits.startswith(b"0")):
            raise FormatError(f"bencode: no number at byte {start}")
        self.position = stop + 1
        return int(text)
