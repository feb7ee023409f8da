"""This module makes and checks the metainfo of a pack or manifest: BitTorrent v2 (BEP 52), one file.

Of a ``.torrent`` only the info dictionary, which the info-hash vouches for, and the piece layers, which its
pieces root vouches for, are believed. Reading and sending files is the caller's.
"""

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from torrentfs.errors import FormatError
from torrentfs.repository import bencode

InfoHash = NewType("InfoHash", bytes)
"""32 bytes: the SHA-256 of an info dictionary."""
PieceIndex = NewType("PieceIndex", int)

BLOCK_LENGTH = 16 * 1024
PIECE_LENGTH = 256 * 1024
PIECE_LENGTH_MAX = 16 * 1024 * 1024
PIECE_COUNT_MAX = 1 << 16
INFO_LENGTH_MAX = 4096
TORRENT_LENGTH_MAX = 32 * PIECE_COUNT_MAX + 256 * 1024
"""The piece layers of the largest torrent, its info dictionary, room for what others add."""
HASH_LENGTH = 32

_ZERO = bytes(HASH_LENGTH)


class Kind(enum.Enum):
    """What a torrent holds."""

    PACK = "pack"
    MANIFEST = "manifest"

    @property
    def suffix(self) -> str:
        """The end of the file's name."""
        return ".tar.zst" if self is Kind.PACK else ".manifest"

    def url_path(self, info_hash: InfoHash) -> str:
        """Name the file under ``public/``."""
        return f"{self.value}s/{info_hash.hex()}{self.suffix}"

    def torrent_path(self, info_hash: InfoHash) -> str:
        """Name the file's metainfo under ``public/``."""
        return f"{self.value}s/{info_hash.hex()}.torrent"


@dataclass(frozen=True, slots=True)
class TorrentRef:
    """What a signed parent says of a torrent; *length* in bytes."""

    info_hash: InfoHash
    length: int
    kind: Kind


class NotCached(Exception):
    """Bytes that are needed first: *length* bytes at *offset* of *ref*. Control flow, not an error."""

    def __init__(self, ref: TorrentRef, offset: int, length: int) -> None:
        super().__init__(ref, offset, length)
        self.ref = ref
        self.offset = offset
        self.length = length

    def __str__(self) -> str:
        return f"{self.ref.kind.value} {self.ref.info_hash.hex()[:16]}: {self.length} bytes at {self.offset}"


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A checked torrent; *layer* holds 32 bytes a piece, or none if there is just one piece."""

    info_hash: InfoHash
    name: str
    length: int
    piece_length: int
    pieces_root: bytes
    layer: bytes
    info: bytes

    @property
    def piece_count(self) -> int:
        """The number of pieces, at least 1."""
        return -(-self.length // self.piece_length)

    def piece_span(self, index: PieceIndex) -> int:
        """Return the length of a piece in bytes; only the last may be short."""
        self._check_index(index)
        return min(self.piece_length, self.length - index * self.piece_length)

    def piece_hash(self, index: PieceIndex) -> bytes:
        """Return the 32 bytes that `piece_root` must give for a piece."""
        self._check_index(index)
        return self.layer[index * HASH_LENGTH : (index + 1) * HASH_LENGTH] or self.pieces_root

    def verify(self, index: PieceIndex, data: bytes | memoryview) -> bool:
        """Tell whether *data* is all of a piece, unchanged."""
        if len(data) != self.piece_span(index):
            return False
        return _root(_leaves(data), self._leaf_count()) == self.piece_hash(index)

    def torrent(self) -> bytes:
        """Encode a ``.torrent`` that holds what is believed and nothing else."""
        layers = {self.pieces_root: bencode.encode(self.layer)} if self.layer else {}
        return bencode.join({b"info": self.info, b"piece layers": bencode.join(layers)})

    def _leaf_count(self) -> int:
        """How many leaves a piece's tree is padded to: a lone piece's to a power of two (BEP 52)."""
        if self.layer:
            return self.piece_length // BLOCK_LENGTH
        return _power_of_two(-(-self.length // BLOCK_LENGTH))

    def _check_index(self, index: PieceIndex) -> None:
        if not 0 <= index < self.piece_count:
            raise IndexError(f"piece {index} of {self.piece_count}")


class Hasher:
    """Makes the metainfo of bytes that are passed by once, in chunks of any size."""

    def __init__(self, piece_length: int = PIECE_LENGTH) -> None:
        if not _is_piece_length(piece_length):
            raise ValueError(f"piece length {piece_length}")
        self._piece_length = piece_length
        self._length = 0
        self._block = hashlib.sha256()
        self._leaves: list[bytes] = []
        self._pieces: list[bytes] = []

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        while len(view):
            room = BLOCK_LENGTH - self._length % BLOCK_LENGTH
            self._block.update(view[:room])
            self._length += len(view[:room])
            view = view[room:]
            if self._length % BLOCK_LENGTH == 0:
                self._close_block()

    def finish(self, suffix: str) -> Metainfo:
        """Return the metainfo of all bytes; its name is 16 hex digits of the pieces root, and *suffix*.

        Raises:
            FormatError: no bytes at all, or more pieces than `PIECE_COUNT_MAX`.
        """
        if self._length % BLOCK_LENGTH:
            self._close_block()
        if self._length <= self._piece_length:
            root = self._pieces[0] if self._pieces else _root(self._leaves, _power_of_two(len(self._leaves)))
            return _metainfo(self._length, self._piece_length, root, b"", suffix)
        if self._leaves:
            self._close_piece()
        root = _layer_root(self._pieces, self._piece_length)
        return _metainfo(self._length, self._piece_length, root, b"".join(self._pieces), suffix)

    def _close_block(self) -> None:
        self._leaves.append(self._block.digest())
        self._block = hashlib.sha256()
        if self._length % self._piece_length == 0:
            self._close_piece()

    def _close_piece(self) -> None:
        self._pieces.append(_root(self._leaves, self._piece_length // BLOCK_LENGTH))
        self._leaves.clear()


def parse(torrent: bytes, ref: TorrentRef | InfoHash) -> Metainfo:
    """Check a ``.torrent`` from anywhere against what is known of it.

    Raises:
        FormatError: malformed, over a limit, or not the torrent of *ref* as this module writes it.
    """
    if len(torrent) > TORRENT_LENGTH_MAX:
        raise FormatError(f"metainfo of {len(torrent)} bytes; at most {TORRENT_LENGTH_MAX} are read")
    parts = bencode.split(torrent)
    info = parts.get(b"info", b"")
    info_hash = ref.info_hash if isinstance(ref, TorrentRef) else ref
    if hashlib.sha256(info).digest() != info_hash:
        raise FormatError(f"metainfo: not that of info-hash {info_hash.hex()}")
    length, piece_length, root, suffix = _read_info(info)
    if isinstance(ref, TorrentRef) and (length, suffix) != (ref.length, ref.kind.suffix):
        raise FormatError(f"metainfo: {length} bytes of {suffix}, not {ref.length} of {ref.kind.suffix}")
    layer = _read_layer(parts.get(b"piece layers", b"de"), length, piece_length, root)
    metainfo = _metainfo(length, piece_length, root, layer, suffix)
    if metainfo.info != info:
        raise FormatError("metainfo: an info dictionary with another name, or with more than belongs there")
    return metainfo


def _read_info(info: bytes) -> tuple[int, int, bytes, str]:
    """Return length, piece length, pieces root and suffix; the caller checks that nothing else is there."""
    if len(info) > INFO_LENGTH_MAX:
        raise FormatError(f"metainfo: an info dictionary of {len(info)} bytes")
    match bencode.decode(info):
        case {
            b"name": bytes(name),
            b"piece length": int(piece_length),
            b"file tree": {**tree},
        }:
            pass
        case _:
            raise FormatError("metainfo: not a BitTorrent v2 torrent")
    match tree.get(name):
        case {b"": {b"length": int(length), b"pieces root": bytes(root)}}:
            pass
        case _:
            raise FormatError("metainfo: not the torrent of one file")
    if not _is_piece_length(piece_length) or len(root) != HASH_LENGTH:
        raise FormatError("metainfo: a piece length or pieces root that cannot be")
    suffix = name[16:].decode(errors="replace")
    if suffix not in {kind.suffix for kind in Kind}:
        raise FormatError("metainfo: a name that is neither a pack's nor a manifest's")
    return length, piece_length, root, suffix


def _read_layer(layers: bytes, length: int, piece_length: int, root: bytes) -> bytes:
    """Return the piece layer out of the bencoded piece layers, checked against the pieces root."""
    if length <= piece_length:
        return b""
    decoded = bencode.decode(layers)
    layer = decoded.get(root) if isinstance(decoded, dict) else None
    piece_count = -(-length // piece_length)
    if not isinstance(layer, bytes) or len(layer) != HASH_LENGTH * piece_count:
        raise FormatError("metainfo: piece layers are missing or of the wrong length")
    pieces = [layer[start : start + HASH_LENGTH] for start in range(0, len(layer), HASH_LENGTH)]
    if _layer_root(pieces, piece_length) != root:
        raise FormatError("metainfo: piece layers that do not belong to the pieces root")
    return layer


def _metainfo(length: int, piece_length: int, root: bytes, layer: bytes, suffix: str) -> Metainfo:
    if not 0 < length <= piece_length * PIECE_COUNT_MAX:
        raise FormatError(
            f"metainfo: {length} bytes; from 1 to {piece_length * PIECE_COUNT_MAX} can be a torrent"
        )
    name = root.hex()[:16] + suffix
    info = bencode.encode(
        {
            b"file tree": {name.encode(): {b"": {b"length": length, b"pieces root": root}}},
            b"meta version": 2,
            b"name": name.encode(),
            b"piece length": piece_length,
        }
    )
    return Metainfo(
        info_hash=InfoHash(hashlib.sha256(info).digest()),
        name=name,
        length=length,
        piece_length=piece_length,
        pieces_root=root,
        layer=layer,
        info=info,
    )


def _is_piece_length(length: int) -> bool:
    return BLOCK_LENGTH <= length <= PIECE_LENGTH_MAX and length & (length - 1) == 0


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is not less than *count*."""
    return 1 << max(count - 1, 0).bit_length()


def _leaves(data: bytes | memoryview) -> list[bytes]:
    view = memoryview(data)
    return [
        hashlib.sha256(view[start : start + BLOCK_LENGTH]).digest()
        for start in range(0, len(view), BLOCK_LENGTH)
    ]


def _layer_root(pieces: Sequence[bytes], piece_length: int) -> bytes:
    """Return the root over whole pieces; missing ones count as pieces of zero leaves (BEP 52)."""
    padding = _root([], piece_length // BLOCK_LENGTH)
    return _root(pieces, _power_of_two(len(pieces)), padding)


def _root(hashes: Sequence[bytes], count: int, padding: bytes = _ZERO) -> bytes:
    """Return the root of a Merkle tree of *hashes*, padded to *count*, a power of two, with *padding*."""
    level = [*hashes, *[padding] * (count - len(hashes))]
    while len(level) > 1:
        level = [
            hashlib.sha256(left + right).digest() for left, right in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]
