"""This module tests frames, the table that closes a pack, tar headers, and how the packer ends packs."""

import io
import os
import random
import struct
import subprocess
import tarfile
from itertools import repeat
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.errors import FormatError
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.pack import (
    FRAME_LENGTH,
    decode_frame,
    decode_table,
    encode_frame,
    encode_table,
    frame_bound,
    store_frame,
)
from torrentfs.repository.publisher import tar
from torrentfs.repository.publisher.nodes import Run
from torrentfs.repository.publisher.packer import Packer

MIB = 1024 * 1024


@given(data=st.binary(max_size=3000), times=st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_a_frame_is_decoded_as_it_was_encoded(data: bytes, times: int) -> None:
    whole = (data * times)[:FRAME_LENGTH]

    assert decode_frame(encode_frame(whole)) == decode_frame(store_frame(whole)) == whole
    assert len(encode_frame(whole)) <= frame_bound(len(whole))


@pytest.mark.parametrize("length", [0, 1, 128 * 1024, 128 * 1024 + 1, FRAME_LENGTH])
def test_zstd_itself_reads_stored_frames(length: int) -> None:
    data = os.urandom(length)

    done = subprocess.run(
        ["zstd", "-dcq"], input=encode_frame(data), capture_output=True, check=True, timeout=20
    )

    assert done.stdout == data


def test_a_damaged_frame_is_refused() -> None:
    frame = bytearray(encode_frame(b"some text, and more of it " * 100))
    for position in range(len(frame)):
        frame[position] ^= 0x55
        with pytest.raises(FormatError):
            decode_frame(frame)
        frame[position] ^= 0x55


def test_a_bomb_a_frame_without_checksum_and_two_frames_are_refused() -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(20 * MIB))
    unchecked = zstandard.ZstdCompressor().compress(b"1234")
    unsized = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(b"1234")
    for frame in (
        bomb,
        unchecked,
        unsized,
        encode_frame(b"1") * 2,
        b"",
        b"1234",
        encode_frame(b"1" * 99)[:-1],
    ):
        with pytest.raises(FormatError):
            decode_frame(frame)
    with pytest.raises(FormatError):
        decode_frame(encode_frame(bytes(1001)), 1000)


def test_the_table_tells_where_frames_are() -> None:
    frames = [(100, 5000), (7, 9), (FRAME_LENGTH, FRAME_LENGTH)]

    assert decode_table(b"frames before it" + encode_table(frames)) == frames


@given(
    tail=st.binary(max_size=200),
    cut=st.integers(0, 40),
    position=st.integers(0, 40),
    byte=st.integers(0, 255),
)
def test_a_damaged_table_is_refused_or_read(tail: bytes, cut: int, position: int, byte: int) -> None:
    table = bytearray(encode_table([(1, 2), (3, 4)]))
    table[position % len(table)] = byte
    for data in (tail, tail + table[cut:], tail + table[: len(table) - cut]):
        try:
            decode_table(bytes(data))
        except FormatError:
            continue


@pytest.mark.parametrize(
    "mtime_ns", [0, 1, -1, -1_500_000_000, 10**9, 1_700_000_000_123_456_789, 2**62, -(2**62), 8**11 * 10**9]
)
@pytest.mark.parametrize("name", [b"a", b"d/" + b"n" * 255, b"\xff\n", b"e" * 100, b"e" * 101])
def test_python_reads_the_headers(mtime_ns: int, name: bytes) -> None:
    header = tar.header(
        name, tar.FILE, mode=0o6751, mtime_ns=mtime_ns, size=2**40, xattrs=[(b"user.a=b", b"\n")]
    )

    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), errors="surrogateescape") as archive:
        member = archive.next()

    assert member is not None
    assert os.fsencode(member.name) == name
    assert (member.mode, member.size) == (0o6751, 2**40)
    assert member.pax_headers["SCHILY.xattr.user.a%3Db"] == "\n"
    assert len(header) % 512 == 0


def packed(tmp_path: Path, pack_length_max: int) -> Packer:
    (tmp_path / "packs").mkdir()
    return Packer(tmp_path / "packs", 2, pack_length_max)


def content(directory: Path, packer: Packer, runs: list[Run]) -> bytes:
    """Read the bytes of runs back."""
    parts = []
    for run in runs:
        data = []
        for frame in range(run.first, run.first + run.count):
            metainfo = packer.packs[packer.frame_pack[frame]]
            with (directory / Kind.PACK.url_path(metainfo.info_hash)).open("rb") as file:
                data.append(
                    decode_frame(
                        os.pread(file.fileno(), packer.frame_stored[frame], packer.frame_offset[frame])
                    )
                )
        parts.append(b"".join(data)[run.skip : run.skip + run.length])
    return b"".join(parts)


def listing(pack: Path) -> list[str]:
    command = ["tar", "--zstd", "-tf", str(pack)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()


def header(name: bytes, length: int) -> bytes:
    return tar.header(name, tar.FILE, mode=0o644, mtime_ns=0, size=length)


def test_small_members_never_cross_frames_and_large_ones_start_their_own(tmp_path: Path) -> None:
    packer = packed(tmp_path, 1024 * MIB)
    chance = random.Random(3)
    small = [(b"s%d" % number, chance.randbytes(chance.randrange(1, 100_000))) for number in range(40)]
    large = chance.randbytes(FRAME_LENGTH * 2 + 1000)

    runs = [packer.add(header(name, len(data)), data) for name, data in small[:20]]
    (whole,), is_whole = packer.add_large(
        header(b"large", len(large)),
        len(large),
        iter([large[start : start + FRAME_LENGTH] for start in range(0, len(large), FRAME_LENGTH)]),
        lambda length: b"",
    )
    runs += [packer.add(header(name, len(data)), data) for name, data in small[20:]]
    packer.finish()

    assert is_whole
    assert (whole.count, whole.skip) == (3, 0)
    assert all(run.count == 1 for run in runs)
    assert runs[20].first == whole.first + 2
    assert content(tmp_path, packer, [whole]) == large
    for run, (_, data) in zip(runs, small, strict=True):
        assert content(tmp_path, packer, [run]) == data


def test_packs_end_at_their_greatest_length(tmp_path: Path) -> None:
    packer = packed(tmp_path, 3 * MIB)
    chance = random.Random(3)
    data = [chance.randbytes(100_000) for _ in range(100)]

    runs = [packer.add(header(b"%d" % number, len(each)), each) for number, each in enumerate(data)]
    packs = packer.finish()

    assert len(packs) == 4
    assert all(2.7 * MIB < pack.length <= 3 * MIB for pack in packs[:-1])
    assert [content(tmp_path, packer, [run]) for run in runs] == data
    names = [name for pack in packs for name in listing(tmp_path / Kind.PACK.url_path(pack.info_hash))]
    assert names == [str(number) for number in range(100)]


def test_a_file_that_no_pack_can_hold_spans_packs_that_tar_still_reads(tmp_path: Path) -> None:
    packer = packed(tmp_path, 4 * MIB)
    data = random.Random(3).randbytes(10 * MIB + 5)
    blocks = iter([data[start : start + FRAME_LENGTH] for start in range(0, len(data), FRAME_LENGTH)])
    numbers = iter(range(100))

    packer.add(header(b"before", 4), b"1234")
    runs, is_whole = packer.add_large(
        header(b"large", len(data)),
        len(data),
        blocks,
        lambda length: header(b"parts/%d" % next(numbers), length),
    )
    packer.add(header(b"after", 4), b"1234")
    packs = packer.finish()

    assert not is_whole
    assert content(tmp_path, packer, runs) == data
    assert all(pack.length <= 4 * MIB for pack in packs)
    joined = b""
    for pack in packs:
        path = tmp_path / Kind.PACK.url_path(pack.info_hash)
        for name in listing(path):
            if name.startswith("parts/"):
                command = ["tar", "--zstd", "-xOf", str(path), name]
                joined += subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    assert joined == data


def test_the_bytes_of_packs_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    hashes = set()
    for threads in (1, 2, 5):
        directory = tmp_path / str(threads)
        (directory / "packs").mkdir(parents=True)
        packer = Packer(directory / "packs", threads, 5 * MIB)
        chance = random.Random(3)
        for number in range(100):
            data = chance.randbytes(60_000) + bytes(60_000)
            packer.add(header(b"%d" % number, len(data)), data)
        hashes.add(tuple(pack.info_hash for pack in packer.finish()))

    assert len(hashes) == 1
    assert len(next(iter(hashes))) > 1


def test_an_abandoned_pack_leaves_nothing(tmp_path: Path) -> None:
    packer = packed(tmp_path, 1024 * MIB)
    for data in repeat(bytes(200_000), 30):
        packer.add(header(b"a", len(data)), data)

    packer.abandon()

    assert list((tmp_path / "packs").iterdir()) == []


def test_the_table_is_zstds_own_seekable_format() -> None:
    table = encode_table([(3, 5)])

    assert table == struct.pack("<IIIIIBI", 0x184D2A5E, 17, 3, 5, 1, 0, 0x8F92EAB1)
