"""Tests of the kernel's FUSE protocol: against linux/fuse.h, hostile bytes and the kernel itself."""

import dataclasses
import errno
import math
import os
import re
import select
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torrentfs.errors import FormatError
from torrentfs.fuse import kernel, mounting, protocol
from torrentfs.fuse.protocol import InitFlag, NotifyCode, Opcode, ProtocolError

HEADER: Final = Path("/usr/include/linux/fuse.h")
LAYOUTS: Final = {
    # Ours, the header's, and the names there of the fields that we do not pass over.
    "IN_HEADER": ("fuse_in_header", "len opcode unique nodeid uid gid pid total_extlen padding"),
    "OUT_HEADER": ("fuse_out_header", "len error unique"),
    "INIT_IN": ("fuse_init_in", "major minor max_readahead flags flags2"),
    "INIT_OUT": (
        "fuse_init_out",
        "major minor max_readahead flags max_background congestion_threshold max_write time_gran "
        "max_pages map_alignment flags2 max_stack_depth request_timeout",
    ),
    "READ_IN": ("fuse_read_in", "fh offset size"),
    "GETXATTR_IN": ("fuse_getxattr_in", "size"),
    "INTERRUPT_IN": ("fuse_interrupt_in", "unique"),
    "ATTR": (
        "fuse_attr",
        "ino size blocks atime mtime ctime atimensec mtimensec ctimensec "
        "mode nlink uid gid rdev blksize flags",
    ),
    "ENTRY_OUT": (
        "fuse_entry_out",
        "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec attr",
    ),
    "ATTR_OUT": ("fuse_attr_out", "attr_valid attr_valid_nsec attr"),
    "DIRENT": ("fuse_dirent", "ino off namelen type"),
    "STATFS_OUT": ("fuse_kstatfs", "blocks bfree bavail files ffree bsize namelen frsize"),
    "XATTR_SIZE_OUT": ("fuse_getxattr_out", "size"),
    "INVAL_INODE_OUT": ("fuse_notify_inval_inode_out", "ino off len"),
    "INVAL_ENTRY_OUT": ("fuse_notify_inval_entry_out", "parent namelen flags"),
    "STORE_OUT": ("fuse_notify_store_out", "nodeid offset size"),
    "PRUNE_OUT": ("fuse_notify_prune_out", "count"),
}
LAYOUT_SIZES: Final = {
    name: getattr(protocol, name).size
    for name in protocol.__all__
    if isinstance(getattr(protocol, name), struct.Struct)
}
READERS: Final[list[Callable[[bytes | memoryview], Any]]] = [
    protocol.header,
    protocol.init_in,
    protocol.read_in,
    protocol.name_in,
    protocol.getxattr_in,
    protocol.listxattr_in,
    protocol.interrupt_in,
]
AGREED: Final = {
    "max_readahead": 1 << 20,
    "max_background": 512,
    "congestion_threshold": 384,
    "max_write": 4096,
    "max_pages": 256,
}
READ_BODY: Final = struct.pack("=QQIIQII", 7, 4096, 131_072, 2, 9, 0o100000, 0)
INIT_BODY: Final = struct.pack("=IIIII44x", 7, 45, 1 << 17, 1 << 30 | 1 << 17, 1 << 7)

u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
offsets = st.integers(0, (1 << 63) - 1)
names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, ord("/")} & set(name))
any_integers = st.integers() | u64 | u32


def request(opcode: int, body: bytes, unique: int = 4) -> bytes:
    return protocol.IN_HEADER.pack(40 + len(body), opcode, unique, 1, 1000, 100, 77, 0, 0) + body


def plain_attr(size: int = 0) -> bytes:
    return protocol.attr(9, size, 8, 0, stat.S_IFREG | 0o644, 1, 0, 0)


# Against linux/fuse.h


@pytest.fixture(scope="module")
def in_header(tmp_path_factory) -> dict[str, int]:
    """What this machine's linux/fuse.h says; of version 7.38 or so, it lacks some of ours."""
    text = HEADER.read_text()
    expressions = {
        f"{kind}{member.name}": f"FUSE_{infix}{member.name}"
        for kind, infix, codes in (("o:", "", Opcode), ("f:", "", InitFlag), ("n:", "NOTIFY_", NotifyCode))
        for member in codes
        if re.search(rf"\bFUSE_{infix}{member.name}\b(?=\s*(=|[(\d]))", text)
    }
    for name, fields in LAYOUTS.values():
        if found := re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL):
            expressions[name] = f"sizeof(struct {name})"
            for field in fields.split():
                if re.search(rf"\b{field}[;\[]", found[1]):
                    expressions[f"{name}.{field}"] = f"offsetof(struct {name}, {field})"
                    expressions[f"{name}.{field}#"] = f"sizeof(((struct {name} *)0)->{field})"
    for name in ("KERNEL_VERSION", "ROOT_ID", "MIN_READ_BUFFER"):
        expressions[name] = f"FUSE_{name}"
    lines = "".join(f'printf("%s %llu\\n", "{key}", L({value}));\n' for key, value in expressions.items())
    source = tmp_path_factory.mktemp("header") / "sizes.c"
    source.write_text(
        "#include <linux/fuse.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        # 1 << 31 is an int there, and negative.
        "#define L(x) (sizeof(x) == 4 ? (unsigned long long)(unsigned)(x) : (unsigned long long)(x))\n"
        f"int main(void) {{\n{lines}return 0; }}\n"
    )
    program = source.with_suffix("")
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True, timeout=60)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=10).stdout
    return {key: int(value) for key, value in map(str.split, output.splitlines())}


def fields_of(layout: struct.Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of each value of a layout without alignment."""
    found, offset = [], 0
    for digits, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        count = int(digits or 1)
        if code in "xs":
            found += [(offset, count)] if code == "s" else []
            offset += count
            continue
        size = struct.calcsize(f"={code}")
        found += [(offset + size * index, size) for index in range(count)]
        offset += size * count
    return found


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("ours", LAYOUTS)
def test_layout_is_the_headers(ours, in_header) -> None:
    layout: struct.Struct = getattr(protocol, ours)
    name, fields = LAYOUTS[ours]
    if name not in in_header:
        assert ours == "PRUNE_OUT"  # 7.45, see test_notifications_of_later_versions
        return

    assert layout.size == in_header[name]
    for field, (offset, size) in zip(fields.split(), fields_of(layout), strict=True):
        if f"{name}.{field}" in in_header:
            assert (offset, size) == (in_header[f"{name}.{field}"], in_header[f"{name}.{field}#"]), field
        else:
            assert field in {"max_stack_depth", "request_timeout"}  # 7.40, 7.43


def test_every_layout_is_compared() -> None:
    assert LAYOUT_SIZES.keys() == LAYOUTS.keys()


@pytest.mark.needs("gcc")
def test_numbers_are_the_headers(in_header) -> None:
    ours = {f"o:{member.name}": member.value for member in Opcode}
    ours |= {f"f:{member.name}": member.value for member in InitFlag}
    ours |= {f"n:{member.name}": member.value for member in NotifyCode}
    ours |= {
        "KERNEL_VERSION": protocol.KERNEL_VERSION,
        "ROOT_ID": protocol.ROOT_NODE,
        "MIN_READ_BUFFER": protocol.BUFFER_LENGTH_MIN,
    }

    theirs = {key: value for key, value in in_header.items() if not key.startswith("fuse_")}

    assert theirs.items() <= ours.items()
    # What a header of 7.38 has not, at most; another number of them means that a name above is wrong.
    assert len(ours.keys() - theirs.keys()) <= 14


# Requests


@settings(deadline=None)
@given(u64, u64, u32, u32, u32, u32, st.binary(max_size=99))
def test_header_gives_what_was_packed(unique, nodeid, opcode, uid, gid, pid, body) -> None:
    message = protocol.IN_HEADER.pack(40 + len(body), opcode, unique, nodeid, uid, gid, pid, 3, 0) + body

    found = protocol.header(memoryview(message))

    assert found == protocol.Header(opcode, unique, nodeid, uid, gid, pid)


@pytest.mark.parametrize("length", [0, 39, 41, 1 << 31])
def test_message_that_is_not_as_long_as_it_says_is_refused(length) -> None:
    with pytest.raises(ProtocolError, match="says that it has"):
        protocol.header(length.to_bytes(4, "little") + bytes(36))


def test_short_message_is_refused() -> None:
    with pytest.raises(ProtocolError, match="39 bytes has no room"):
        protocol.header(request(1, b"")[:39])


def test_protocol_error_is_a_format_error() -> None:
    assert issubclass(ProtocolError, FormatError)


def test_init_has_64_bits_of_flags_since_7_36() -> None:
    found = protocol.init_in(INIT_BODY)

    flags = InitFlag.INIT_EXT | InitFlag.NO_OPEN_SUPPORT | InitFlag.HAS_RESEND
    assert found == protocol.InitIn(7, 45, 1 << 17, flags)


def test_init_of_16_and_of_8_bytes_is_read() -> None:
    assert protocol.init_in(INIT_BODY[:12] + bytes(4)) == protocol.InitIn(7, 45, 1 << 17, InitFlag(0))
    assert protocol.init_in(struct.pack("=II", 7, 5)) == protocol.InitIn(7, 5, 0, InitFlag(0))


def test_more_flags_count_only_if_they_are_announced() -> None:
    body = struct.pack("=IIIII44x", 7, 45, 0, 1, 0xFFFF_FFFF)

    assert protocol.init_in(body).flags == InitFlag.ASYNC_READ


def test_flags_that_are_announced_and_not_there_are_refused() -> None:
    with pytest.raises(ProtocolError, match="promises"):
        protocol.init_in(INIT_BODY[:63])


def test_unknown_flags_of_a_later_kernel_are_kept() -> None:
    body = struct.pack("=IIIII44x", 7, 99, 0, 1 << 30, 1 << 31)

    assert protocol.init_in(body).flags == 1 << 63 | 1 << 30


@pytest.mark.parametrize("major", [0, 6, 8, (1 << 32) - 1])
def test_of_another_major_version_only_the_version_is_read(major) -> None:
    body = struct.pack("=IIIII44x", major, 3, 4096, 0xFFFF_FFFF, 0xFFFF_FFFF)

    assert protocol.init_in(body) == protocol.InitIn(major, 3, 0, InitFlag(0))


@settings(deadline=None)
@given(u64, offsets, u32, st.binary(max_size=9))
def test_read_gives_what_was_packed(fh, offset, size, later_fields) -> None:
    body = struct.pack("=QQIIQII", fh, offset, size, 1, 2, 3, 4) + later_fields

    assert protocol.read_in(memoryview(body)) == (fh, offset, size)


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_read_beyond_where_any_file_ends_is_refused(offset) -> None:
    with pytest.raises(ProtocolError, match="beyond"):
        protocol.read_in(struct.pack("=QQI20x", 0, offset, 1))


@settings(deadline=None)
@given(names, st.binary(max_size=9))
def test_name_ends_at_its_first_nul(name, extension) -> None:
    assert protocol.name_in(memoryview(name + b"\0" + extension)) == name


def test_name_too_long_for_any_directory_is_the_filesystems_to_refuse() -> None:
    assert protocol.name_in(b"x" * 1024 + b"\0") == b"x" * 1024


@pytest.mark.parametrize("body", [b"", b"\0", b"name", b"a/b\0", b"/\0", b"\0name\0"])
def test_what_is_no_name_is_refused(body) -> None:
    with pytest.raises(ProtocolError):
        protocol.name_in(body)


@settings(deadline=None)
@given(u32, names)
def test_attribute_requests_give_what_was_packed(size, name) -> None:
    body = struct.pack("=II", size, 5)

    assert protocol.getxattr_in(memoryview(body + name + b"\0")) == (size, name)
    assert protocol.listxattr_in(memoryview(body)) == size


def test_slash_is_legal_in_an_attributes_name() -> None:
    assert protocol.getxattr_in(bytes(8) + b"user.a/b\0") == (0, b"user.a/b")


@settings(deadline=None)
@given(u64)
def test_interrupt_names_the_request(unique) -> None:
    assert protocol.interrupt_in(struct.pack("=Q", unique)) == unique


def are_bounded(found: object) -> bool:
    if isinstance(found, protocol.Header):
        found = msgspec.structs.astuple(found)
    if isinstance(found, protocol.InitIn):
        found = dataclasses.astuple(found)
    if isinstance(found, tuple):
        return all(map(are_bounded, found))
    if isinstance(found, bytes):
        return 0 < len(found) < 300 and b"\0" not in found
    return isinstance(found, int) and 0 <= found < 1 << 64


def attempt(reader: Callable[[bytes | memoryview], Any], data: bytes) -> None:
    """Read *data* in both forms; they end alike, in bounded values or in ProtocolError."""
    outcomes: list[object] = []
    for form in (data, memoryview(data)):
        try:
            found = reader(form)
        except ProtocolError as error:
            outcomes.append(str(error))
        else:
            assert are_bounded(found)
            outcomes.append(found)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff" * 64)
@example(bytes(64))
def test_no_bytes_crash_a_reader(reader, data) -> None:
    attempt(reader, data)


VALID: Final = [
    INIT_BODY,
    READ_BODY,
    b"libpython.so\0",
    bytes(8) + b"user.name\0",
    struct.pack("=Q", 4 | protocol.RESEND_BIT),
]


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*VALID, *(request(1, body) for body in VALID)]),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=4),
    st.integers(0, 110),
    st.binary(max_size=16),
)
def test_no_mutated_message_crashes_a_reader(reader, message, changes, end, more) -> None:
    mutated = bytearray(message)
    for place, value in changes:
        mutated[place % len(mutated)] = value

    attempt(reader, bytes(mutated[:end]) + more)


# Replies


@settings(deadline=None)
@given(u64, st.binary(max_size=99))
def test_reply_tells_its_length_and_whose_it_is(unique, body) -> None:
    message = protocol.reply(unique, memoryview(body))

    assert protocol.OUT_HEADER.unpack_from(message) == (len(message), 0, unique)
    assert message == protocol.reply_head(unique, len(body)) + body


def test_reply_to_a_request_that_came_again_keeps_the_bit() -> None:
    unique = protocol.RESEND_BIT | 10

    assert struct.unpack("=IiQ", protocol.reply(unique)) == (16, 0, unique)
    assert struct.unpack("=IiQ", protocol.error_reply(unique, errno.ENOENT)) == (16, -2, unique)


@settings(deadline=None)
@given(any_integers)
@example(511)
@example(512)
@example(0)
def test_error_is_one_that_the_kernel_takes(number) -> None:
    _, error, _ = struct.unpack("=IiQ", protocol.error_reply(2, number))

    assert error == (-number if 1 <= number <= 511 else -errno.EIO)


@settings(deadline=None)
@given(u64, st.integers(0, (1 << 63) - 1), u64, st.integers(-(1 << 63), (1 << 63) - 1), u32, u32, u32, u32)
@example((1 << 64) - 1, (1 << 63) - 1, (1 << 54), -1, 0o177777, 1, 0, 0)
def test_attributes_are_told_as_they_are(inode, size, blocks, mtime_ns, mode, nlink, uid, gid) -> None:
    found = protocol.ATTR.unpack(protocol.attr(inode, size, blocks, mtime_ns, mode, nlink, uid, gid))

    assert found[:3] == (inode, size, blocks)
    assert {second * 10**9 + part for second, part in zip(found[3:6], found[6:9], strict=True)} == {mtime_ns}
    assert all(0 <= part < 10**9 for part in found[6:9])
    assert found[9:] == (mode, nlink, uid, gid, 0, 4096, 0)


@settings(deadline=None)
@given(st.tuples(*[any_integers] * 8))
@example((1, 1 << 63, 0, 0, 0, 0, 0, 0))
@example((1, -1, 0, 0, 0, 0, 0, 0))
@example((1 << 64, 0, 0, 0, 0, 0, 0, 0))
@example((1, 0, 0, 10**9 << 63, 0, 0, 0, 0))
def test_attributes_that_no_file_has_are_refused(values) -> None:
    inode, size, blocks, mtime_ns, *words = values
    fit = (
        inode in range(1 << 64)
        and size in range(1 << 63)
        and blocks in range(1 << 64)
        and mtime_ns // 10**9 in range(-(1 << 63), 1 << 63)
        and all(word in range(1 << 32) for word in words)
    )

    if fit:
        assert len(protocol.attr(*values)) == 88
    else:
        with pytest.raises(ProtocolError):
            protocol.attr(*values)


def told_s(seconds: int, nanoseconds: int) -> float:
    assert 0 <= nanoseconds < 10**9
    return seconds + nanoseconds / 10**9


timeouts = st.floats() | st.integers() | st.floats(0, 1e5)


@settings(deadline=None)
@given(u64, timeouts, timeouts)
@example(1, float("nan"), -0.0)
@example(1, float("inf"), float("-inf"))
@example(1, 10**400, 0.999_999_999_999_999_9)
def test_timeouts_are_kept_within_what_the_kernel_counts(inode, entry_s, attr_s) -> None:
    found = protocol.ENTRY_OUT.unpack(protocol.entry_out(plain_attr(), inode, entry_s, attr_s))

    assert found[:2] == (inode, 0)
    assert found[6] == plain_attr()
    for wanted, told in ((entry_s, told_s(found[2], found[4])), (attr_s, told_s(found[3], found[5]))):
        is_none = isinstance(wanted, float) and math.isnan(wanted)
        bounded = 0 if is_none else min(max(wanted, 0), protocol.TIMEOUT_S_MAX)
        assert told == pytest.approx(bounded, abs=2e-9)


def test_absent_name_is_inode_0() -> None:
    message = protocol.negative_entry_out(86_400.5)

    assert message == struct.pack("=QQQQII", 0, 0, 86_400, 0, 500_000_000, 0) + bytes(88)


def test_attributes_alone_have_their_own_timeout() -> None:
    message = protocol.attr_out(plain_attr(), 60.25)

    assert message == struct.pack("=QII", 60, 250_000_000, 0) + plain_attr()


def listed(data: bytes, head: int = 0) -> Iterator[tuple[bytes, int, int, int, bytes]]:
    """Take a listing apart as fs/fuse/readdir.c does: *head* bytes, an entry, up to the next eighth byte."""
    while data:
        inode, position, length, kind = struct.unpack_from("=QQII", data, head)
        size = head + 24 + length
        size += -size % 8
        assert size <= len(data)
        yield data[:head], inode, position, kind, data[head + 24 : head + 24 + length]
        data = data[size:]


@settings(deadline=None)
@given(st.lists(st.tuples(u64, offsets, st.sampled_from([stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK]), names)))
def test_listing_is_what_the_kernel_reads(entries) -> None:
    found = protocol.entry_out(plain_attr(), 9, 1.0, 1.0)
    plain = b"".join(protocol.dirent(inode, at, mode | 0o755, name) for inode, at, mode, name in entries)
    plus = b"".join(
        protocol.direntplus(found, inode, at, mode | 0o4755, name) for inode, at, mode, name in entries
    )

    wanted = [(inode, at, stat.S_IFMT(mode) >> 12, name) for inode, at, mode, name in entries]
    assert [entry[1:] for entry in listed(plain)] == wanted
    assert list(listed(plus, 128)) == [(found, *entry) for entry in wanted]


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0", b"x" * 256])
def test_one_wrong_name_does_not_spoil_a_listing(name) -> None:
    with pytest.raises(ProtocolError, match="cannot be a name"):
        protocol.dirent(9, 1, stat.S_IFREG, name)


@pytest.mark.parametrize(("inode", "position"), [(1 << 64, 1), (-1, 1), (9, 1 << 63), (9, -1)])
def test_entry_that_does_not_fit_is_refused(inode, position) -> None:
    with pytest.raises(ProtocolError, match=r"inode"):
        protocol.dirent(inode, position, stat.S_IFREG, b"name")


def test_filesystem_has_nothing_free() -> None:
    message = protocol.statfs_out(1000, 20, 4096, 255)

    assert message == struct.pack("=QQQQQIIII", 1000, 0, 0, 20, 0, 4096, 255, 4096, 0) + bytes(24)


def test_attribute_says_how_long_it_is() -> None:
    assert protocol.xattr_size_out(300) == struct.pack("=II", 300, 0)
    with pytest.raises(ProtocolError):
        protocol.xattr_size_out(1 << 32)


def init_values(minor: int, flags: InitFlag, **changed: int) -> tuple[int, ...]:
    message = protocol.init_out(minor, flags=flags, **{**AGREED, **changed})
    assert len(message) == 64
    return protocol.INIT_OUT.unpack(message)


def test_init_is_answered_with_the_lower_version() -> None:
    assert init_values(31, InitFlag.ASYNC_READ)[:4] == (7, 31, 1 << 20, 1)
    assert init_values(99, InitFlag.ASYNC_READ)[:2] == (7, 45)
    assert init_values(45, InitFlag(0))[4:] == (512, 384, 4096, 1, 256, 0, 0, 0, 0)


def test_init_announces_that_it_has_more_flags() -> None:
    values = init_values(45, InitFlag.HAS_RESEND | InitFlag.MAX_PAGES)

    assert values[3] == InitFlag.INIT_EXT | InitFlag.MAX_PAGES
    assert values[10] == 1 << 7


def test_kernel_that_is_too_old_is_refused_in_words() -> None:
    with pytest.raises(ProtocolError, match=r"speaks FUSE 7\.30; 7\.31 is needed"):
        init_values(30, InitFlag(0))


@pytest.mark.parametrize("name", AGREED)
@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_init_value_that_does_not_fit_is_refused(name, value) -> None:
    with pytest.raises(ProtocolError, match="does not fit"):
        init_values(45, InitFlag(0), **{name: value})


# Notifications


def test_notifications_are_whole_messages_of_unique_0() -> None:
    assert protocol.inval_inode(9, -1, 0) == struct.pack("=IiQ Qqq", 40, 2, 0, 9, -1, 0)
    assert protocol.inval_entry(1, b"gcc") == struct.pack("=IiQ QII", 36, 3, 0, 1, 3, 0) + b"gcc\0"
    assert protocol.store(9, 4096, 100) == struct.pack("=IiQ QQII", 140, 4, 0, 9, 4096, 100, 0)


def test_notifications_of_later_versions() -> None:
    assert protocol.resend() == struct.pack("=IiQ", 16, 7, 0)
    assert protocol.prune([9, 10]) == struct.pack("=IiQ IIQ QQ", 48, 9, 0, 2, 0, 0, 9, 10)
    assert protocol.prune([]) == struct.pack("=IiQ IIQ", 32, 9, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: protocol.inval_inode(1 << 64, 0, 0),
        lambda: protocol.inval_inode(9, 1 << 63, 0),
        lambda: protocol.inval_entry(-1, b"name"),
        lambda: protocol.inval_entry(1, b""),
        lambda: protocol.inval_entry(1, b"a/b"),
        lambda: protocol.inval_entry(1, b"x" * 256),
        lambda: protocol.store(9, 1 << 63, 1),
        lambda: protocol.store(9, -1, 1),
        lambda: protocol.store(9, 0, 1 << 32),
        lambda: protocol.prune([1 << 64]),
        lambda: protocol.reply_head(1 << 64, 0),
        lambda: protocol.reply_head(1, 1 << 32),
        lambda: protocol.error_reply(-1, 5),
    ],
)
def test_what_does_not_fit_a_message_is_refused(make) -> None:
    with pytest.raises(ProtocolError):
        make()


MAKERS: Final[list[Callable[[int, int, int, bytes], bytes]]] = [
    lambda a, b, c, name: protocol.reply(a, name),
    lambda a, b, c, name: protocol.reply_head(a, b),
    lambda a, b, c, name: protocol.error_reply(a, b),
    lambda a, b, c, name: protocol.entry_out(name, a, b, c),
    lambda a, b, c, name: protocol.attr_out(name, a),
    lambda a, b, c, name: protocol.negative_entry_out(a),
    protocol.dirent,
    lambda a, b, c, name: protocol.statfs_out(a, b, c, c),
    lambda a, b, c, name: protocol.xattr_size_out(a),
    lambda a, b, c, name: protocol.inval_inode(a, b, c),
    lambda a, b, c, name: protocol.inval_entry(a, name),
    lambda a, b, c, name: protocol.store(a, b, c),
    lambda a, b, c, name: protocol.prune([a, b, c]),
    lambda a, b, c, name: protocol.init_out(
        a,
        max_readahead=b,
        flags=InitFlag(c % (1 << 64)),
        max_background=b,
        congestion_threshold=c,
        max_write=b,
        max_pages=c,
        time_gran=a,
    ),
]


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=150, deadline=None)
@given(any_integers, any_integers, any_integers, st.binary(max_size=300))
def test_no_values_crash_a_maker(make, a, b, c, name) -> None:
    with suppress(ProtocolError):
        assert 0 < len(make(a, b, c, name)) < 600


# Against the kernel


def receive(descriptor: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], 10)
    assert ready, "the kernel asks for nothing"
    return os.read(descriptor, 1 << 20)


@pytest.fixture
def connection(tmp_path) -> Iterator[tuple[int, protocol.InitIn]]:
    """A mount that nobody looks at, with INIT answered: no other request ever comes."""
    descriptor = mounting.mount(tmp_path, source="test")
    try:
        message = receive(descriptor)
        header = protocol.header(message)
        assert header.opcode == Opcode.INIT
        offered = protocol.init_in(message[40:])
        flags = offered.flags & (InitFlag.MAX_PAGES | InitFlag.HAS_RESEND | InitFlag.NO_OPEN_SUPPORT)
        os.write(
            descriptor, protocol.reply(header.unique, protocol.init_out(offered.minor, flags=flags, **AGREED))
        )
        yield descriptor, offered
    finally:
        os.close(descriptor)
        with suppress(Exception):
            kernel.detach(tmp_path)


def told(descriptor: int, message: bytes) -> int:
    """Return the errno of the kernel's judgement, 0 if it took *message*."""
    try:
        assert os.write(descriptor, message) == len(message)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.root
@pytest.mark.fuse
def test_kernel_understands_every_notification(connection) -> None:
    descriptor, offered = connection

    # ENOENT: understood, and no such inode. A message that it does not understand is EINVAL.
    assert told(descriptor, protocol.inval_inode(9, 0, 0)) == errno.ENOENT
    assert told(descriptor, protocol.inval_entry(9, b"gcc")) == errno.ENOENT
    assert told(descriptor, protocol.store(9, 0, 4) + b"data") == errno.ENOENT
    assert told(descriptor, protocol.inval_inode(1, 0, 0)) == 0
    if InitFlag.HAS_RESEND in offered.flags:
        assert told(descriptor, protocol.resend()) == 0
    if offered.minor >= 45:
        assert told(descriptor, protocol.prune([9, 10])) == 0
        assert told(descriptor, protocol.prune([])) == 0


@pytest.mark.root
@pytest.mark.fuse
def test_kernel_refuses_what_we_never_write(connection) -> None:
    descriptor, _ = connection
    message = protocol.inval_entry(9, b"gcc")

    assert told(descriptor, message[:-1]) == errno.EINVAL
    assert told(descriptor, struct.pack("=IiQ", 16, -512, 2)) == errno.EINVAL
    assert told(descriptor, protocol.reply(2)) == errno.ENOENT


@pytest.mark.root
@pytest.mark.fuse
def test_kernel_speaks_a_version_and_flags_that_we_know(connection) -> None:
    _, offered = connection

    assert offered.major == protocol.KERNEL_VERSION
    assert offered.minor >= protocol.MINOR_MIN
    assert InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT in offered.flags
