import hashlib
import random
from pathlib import Path

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.errors import FormatError
from torrentfs.repository import bencode
from torrentfs.repository.metainfo import (
    BLOCK_LENGTH,
    PIECE_LENGTH,
    Hasher,
    InfoHash,
    Kind,
    Metainfo,
    PieceIndex,
    TorrentRef,
    parse,
)

LENGTHS = [
    1,
    BLOCK_LENGTH,
    BLOCK_LENGTH + 1,
    3 * BLOCK_LENGTH,
    PIECE_LENGTH - 1,
    PIECE_LENGTH,
    PIECE_LENGTH + 1,
    3 * PIECE_LENGTH + 5,
    8 * PIECE_LENGTH,
    9 * PIECE_LENGTH - BLOCK_LENGTH,
]


def some_bytes(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def hashed(data: bytes, kind: Kind = Kind.PACK) -> Metainfo:
    hasher = Hasher()
    hasher.update(data)
    return hasher.finish(kind.suffix)


def ref_of(metainfo: Metainfo, kind: Kind = Kind.PACK) -> TorrentRef:
    return TorrentRef(metainfo.info_hash, metainfo.length, kind)


def test_paths_of_a_torrent_are_those_of_the_house() -> None:
    info_hash = InfoHash(bytes(32))

    paths = [
        Kind.PACK.url_path(info_hash),
        Kind.MANIFEST.url_path(info_hash),
        Kind.PACK.torrent_path(info_hash),
    ]

    zeros = "0" * 64
    assert paths == [f"packs/{zeros}.tar.zst", f"manifests/{zeros}.manifest", f"packs/{zeros}.torrent"]


@pytest.mark.parametrize("length", LENGTHS)
def test_info_dictionary_and_piece_layers_are_libtorrents_byte_for_byte(length: int, tmp_path: Path) -> None:
    data = some_bytes(length)
    metainfo = hashed(data)
    (tmp_path / metainfo.name).write_bytes(data)

    creation = lt.create_torrent(
        [lt.create_file_entry(metainfo.name, length)], PIECE_LENGTH, lt.create_torrent.v2_only
    )
    lt.set_piece_hashes(creation, str(tmp_path))
    theirs = creation.generate()

    assert metainfo.info == lt.bencode(theirs[b"info"])
    assert theirs[b"piece layers"] == ({metainfo.pieces_root: metainfo.layer} if metainfo.layer else {})


@pytest.mark.parametrize("length", LENGTHS)
def test_our_torrent_loads_in_libtorrent_with_the_same_info_hash(length: int) -> None:
    metainfo = hashed(some_bytes(length))

    theirs = lt.load_torrent_buffer(metainfo.torrent()).ti

    assert theirs.info_hashes().v2.to_bytes() == metainfo.info_hash
    assert not theirs.info_hashes().has_v1()
    assert (theirs.num_pieces(), theirs.layout().file_size(0), theirs.name()) == (
        metainfo.piece_count,
        metainfo.length,
        metainfo.name,
    )


@pytest.mark.parametrize("length", LENGTHS)
def test_each_piece_verifies_and_no_changed_or_short_one_does(length: int) -> None:
    data = some_bytes(length)
    metainfo = parse(hashed(data).torrent(), ref_of(hashed(data)))

    for index in map(PieceIndex, range(metainfo.piece_count)):
        start = index * metainfo.piece_length
        piece = data[start : start + metainfo.piece_span(index)]

        assert metainfo.verify(index, piece)
        assert metainfo.verify(index, memoryview(piece))
        assert not metainfo.verify(index, bytes([piece[0] ^ 1]) + piece[1:])
        assert not metainfo.verify(index, piece[:-1])
        assert not metainfo.verify(index, piece + b"\0")
    with pytest.raises(IndexError):
        metainfo.piece_hash(PieceIndex(metainfo.piece_count))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2 * PIECE_LENGTH), max_size=6), st.sampled_from(Kind))
def test_sizes_of_chunks_do_not_matter_and_what_is_made_can_be_parsed(sizes: list[int], kind: Kind) -> None:
    data = some_bytes(sum(sizes) + 1)
    hasher = Hasher()
    start = 0
    for size in [*sizes, 1]:
        hasher.update(memoryview(data)[start : start + size])
        start += size

    metainfo = hasher.finish(kind.suffix)

    assert metainfo == hashed(data, kind)
    assert parse(metainfo.torrent(), ref_of(metainfo, kind)) == metainfo
    assert parse(metainfo.torrent(), metainfo.info_hash) == metainfo


def test_nothing_at_all_is_no_torrent() -> None:
    with pytest.raises(FormatError):
        Hasher().finish(".manifest")


def test_what_a_mirror_adds_beside_info_and_layers_is_dropped() -> None:
    metainfo = hashed(some_bytes(PIECE_LENGTH + 1))
    parts = bencode.split(metainfo.torrent())
    parts[b"announce"] = bencode.encode(b"http://evil.example/announce")
    parts[b"url-list"] = bencode.encode([b"http://evil.example/"])

    parsed = parse(bencode.join(parts), ref_of(metainfo))

    assert parsed == metainfo
    assert b"evil" not in parsed.torrent()


def replaced(metainfo: Metainfo, **changes: bencode.Value) -> tuple[bytes, InfoHash]:
    """Return a torrent whose info dictionary has *changes*, and its true info-hash."""
    info = bencode.decode(metainfo.info)
    assert isinstance(info, dict)
    info |= {key.replace("_", " ").encode(): value for key, value in changes.items()}
    raw = bencode.encode(info)
    parts = bencode.split(metainfo.torrent()) | {b"info": raw}
    return bencode.join(parts), InfoHash(hashlib.sha256(raw).digest())


@pytest.mark.parametrize(
    "changes",
    [
        {"piece_length": 3},
        {"piece_length": 1 << 40},
        {"piece_length": -1},
        {"name": b"../../etc/passwd"},
        {"name": b"0123456789abcdef.tar.zst"},
        {"meta_version": 1},
        {"private": 1},
        {"pieces": b"x" * 20, "length": 4},
        {"ssl_cert": b"x"},
        {"file_tree": {}},
        {"file_tree": []},
        {"file_tree": {b"a": {b"": {b"length": 1}}, b"b": {b"": {b"length": 1}}}},
        {"comment": b"x" * 5000},
    ],
)
def test_info_dictionaries_that_we_would_not_write_are_refused(changes: dict[str, bencode.Value]) -> None:
    torrent, info_hash = replaced(hashed(some_bytes(PIECE_LENGTH + 1)), **changes)

    with pytest.raises(FormatError):
        parse(torrent, info_hash)


def test_torrent_of_another_length_kind_or_hash_is_refused() -> None:
    metainfo = hashed(some_bytes(5))
    wrong = [
        TorrentRef(metainfo.info_hash, 6, Kind.PACK),
        TorrentRef(metainfo.info_hash, 5, Kind.MANIFEST),
        TorrentRef(InfoHash(bytes(32)), 5, Kind.PACK),
    ]

    for ref in wrong:
        with pytest.raises(FormatError):
            parse(metainfo.torrent(), ref)


def test_piece_layers_that_are_missing_short_or_forged_are_refused() -> None:
    metainfo = hashed(some_bytes(3 * PIECE_LENGTH))
    root = metainfo.pieces_root
    forged = [
        {},
        {root: metainfo.layer[:-32]},
        {root: bytes(96)},
        {root: [metainfo.layer]},
        [],
        {root: b""},
        3,
    ]

    for layers in forged:
        parts = bencode.split(metainfo.torrent()) | {b"piece layers": bencode.encode(layers)}  # type: ignore[arg-type]
        with pytest.raises(FormatError):
            parse(bencode.join(parts), ref_of(metainfo))


bencodable: st.SearchStrategy[bencode.Value] = st.recursive(
    st.integers(-(10**18), 10**18) | st.binary(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.binary(max_size=4), children, max_size=4)
    ),
    max_leaves=20,
)


@given(bencodable)
def test_bencode_comes_back_as_it_went_and_as_libtorrent_reads_it(value: bencode.Value) -> None:
    encoded = bencode.encode(value)

    assert bencode.decode(encoded) == value
    assert lt.bdecode(encoded) == value


@given(st.binary(max_size=60) | st.text("ilde0123456789:-x", max_size=60).map(str.encode))
def test_bencode_that_is_read_is_canonical_and_all_else_is_a_format_error(data: bytes) -> None:
    try:
        value = bencode.decode(data)
    except FormatError:
        return
    assert bencode.encode(value) == data


@given(st.data())
def test_damaged_torrents_are_refused_or_mean_the_same(data: st.DataObject) -> None:
    metainfo = hashed(some_bytes(2 * PIECE_LENGTH + 7))
    torrent = bytearray(metainfo.torrent())
    start = data.draw(st.integers(0, len(torrent) - 1))
    torrent[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))

    try:
        parsed = parse(bytes(torrent), ref_of(metainfo))
    except FormatError:
        return
    assert parsed == metainfo


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"d",
        b"l" * 100_000,
        b"d1:a" * 50_000,
        b"l" + b"le" * 900_000 + b"e",
        b"99999999999:x",
        b"i" + b"9" * 100_000 + b"e",
        b"i-0e",
        b"i01e",
        b"01:a",
        b"-1:a",
        b"d1:b0:1:a0:e",
        b"d1:a0:1:a0:e",
        b"di1e0:e",
        b"0:0:",
        b"x" * 10_000_000,
        "i٣e".encode(),
    ],
)
def test_hostile_bencode_is_a_format_error_at_once(hostile: bytes) -> None:
    with pytest.raises(FormatError):
        bencode.decode(hostile)
    with pytest.raises(FormatError):
        parse(hostile, InfoHash(bytes(32)))
