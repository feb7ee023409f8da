"""This module reads and makes the frames of a pack: independent zstd frames, and the table that closes them.

The tar inside the frames is `tar`'s, cutting it into frames `packer`'s; ``docs/pack-format.md`` has both.
"""

import struct
import threading

import xxhash
import zstandard

from torrentfs.errors import FormatError

FRAME_LENGTH = 256 * 1024
"""Bytes of tar that a writer puts into a frame at most."""
FRAME_LENGTH_MAX = 1024 * 1024
"""Decoded bytes of a frame that a reader accepts."""
FRAME_STORED_MAX = FRAME_LENGTH_MAX + 8 * 1024
"""Encoded bytes of a frame that a reader accepts: zstd's own bound for `FRAME_LENGTH_MAX`, rounded up."""
PACK_LENGTH_MAX = 1024**3
PACK_LENGTH_LIMIT = 16 * 1024**3
"""Bytes of a pack that a reader accepts: room for other writers' choices."""
FRAME_COUNT_MAX = 1 << 20

COMPRESSION_LEVEL = 3
_GAIN_MIN = 32
"""A frame that would not shrink by a 32nd (3 %) is stored: it costs no decoding."""

_FRAME_MAGIC = 0xFD2FB528
_STORED_DESCRIPTOR = 0xA4
"""Single segment, content size of 4 bytes, content checksum (RFC 8878, 3.1.1.1.1)."""
_RAW_BLOCK_LENGTH = 128 * 1024
_TABLE_MAGIC = 0x184D2A5E
_FOOTER_MAGIC = 0x8F92EAB1
_FOOTER = struct.Struct("<IBI")
TABLE_OVERHEAD = 8 + _FOOTER.size
TABLE_RECORD = 8


class _Codecs(threading.local):
    """One of each a thread: python-zstandard's are not safe to share."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=COMPRESSION_LEVEL, write_checksum=True, write_content_size=True
        )
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def decode_frame(frame: bytes | memoryview, length_max: int = FRAME_LENGTH_MAX) -> bytes:
    """Decode a frame whose declared size and checksum are checked.

    Raises:
        FormatError: not one whole frame, no or a wrong checksum, no declared size or one over *length_max*.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if not parameters.has_checksum or parameters.content_size > length_max:  # unknown is 2**64 - 1
            raise FormatError(f"frame without checksum or of {parameters.content_size} bytes")
        if parameters.content_size == 0:
            return b""
        data = _codecs.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"damaged frame: {error}") from error
    if len(data) != parameters.content_size:
        raise FormatError("frame shorter than it says")
    return data


def encode_frame(data: bytes | bytearray | memoryview) -> bytes:
    """Encode a frame of at most 4 GiB; what zstd would hardly shrink is stored as it is."""
    frame = _codecs.compressor.compress(data)
    if len(frame) > len(data) - len(data) // _GAIN_MIN:
        stored = store_frame(data)
        return stored if len(stored) <= frame_bound(len(data)) else frame
    return frame


def store_frame(data: bytes | bytearray | memoryview) -> bytes:
    """Encode a frame of raw blocks (RFC 8878, 3.1.1.2)."""
    view = memoryview(data)
    parts: list[bytes | memoryview] = [struct.pack("<IBI", _FRAME_MAGIC, _STORED_DESCRIPTOR, len(view))]
    for start in range(0, max(len(view), 1), _RAW_BLOCK_LENGTH):
        block = view[start : start + _RAW_BLOCK_LENGTH]
        last = start + len(block) == len(view)
        parts += [(last | len(block) << 3).to_bytes(3, "little"), block]
    parts.append(struct.pack("<I", xxhash.xxh64_intdigest(data) & 0xFFFFFFFF))
    return b"".join(parts)


def frame_bound(length: int) -> int:
    """Return how many bytes a frame of *length* decoded bytes takes at most."""
    return length + 13 + 3 * max(1, -(-length // _RAW_BLOCK_LENGTH))


def encode_table(frames: list[tuple[int, int]]) -> bytes:
    """Encode the table of (stored, decoded) lengths, in zstd's seekable format, without its own checksums."""
    records = b"".join(struct.pack("<II", stored, decoded) for stored, decoded in frames)
    footer = _FOOTER.pack(len(frames), 0, _FOOTER_MAGIC)
    return struct.pack("<II", _TABLE_MAGIC, len(records) + len(footer)) + records + footer


def decode_table(tail: bytes) -> list[tuple[int, int]]:
    """Decode the table of (stored, decoded) lengths at the end of *tail*, the end of a pack.

    Raises:
        FormatError: no table there, or one that starts before *tail*.
    """
    if len(tail) < TABLE_OVERHEAD:
        raise FormatError("pack without a frame table")
    count, descriptor, magic = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
    width = TABLE_RECORD + (4 if descriptor & 0x80 else 0)
    if magic != _FOOTER_MAGIC or descriptor & 0x7C or count > FRAME_COUNT_MAX:
        raise FormatError("pack without a frame table that this release reads")
    start = len(tail) - _FOOTER.size - count * width
    if start < 8 or struct.unpack_from("<II", tail, start - 8) != (_TABLE_MAGIC, len(tail) - start):
        raise FormatError("frame table longer than the bytes given")
    return [struct.unpack_from("<II", tail, start + number * width) for number in range(count)]
