"""Tests of the web side: ranges as values, and a real server asked by a real client."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from torrentfs.errors import ListenError
from torrentfs.http import PublicFiles, application, bind, serve
from torrentfs.http.answer import CHUNK_LENGTH
from torrentfs.http.ranges import Span, UnsatisfiableError, matches, parse_range

CONTENT = os.urandom(3 * CHUNK_LENGTH + 77)
DEADLINE_S = 10


@asynccontextmanager
async def client(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of *root*."""
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(serve, application(PublicFiles(root)), bind("127.0.0.1:0"))
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=DEADLINE_S) as asking:
            yield asking
        nursery.cancel_scope.cancel()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    public = tmp_path / "public"
    (public / "packs").mkdir(parents=True)
    (public / "metadata").mkdir()
    (public / "packs" / "ab.tar.zst").write_bytes(CONTENT)
    (public / "packs" / "empty").write_bytes(b"")
    (public / "metadata" / "timestamp.json").write_bytes(b"{}")
    (public / "index.html").write_bytes(b"<h1>hello</h1>")
    (public / ".hidden").write_bytes(b"being written")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "root.pem").write_bytes(b"secret")
    return public


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=10-19", Span(10, 10)),
        ("bytes=90-", Span(90, 10)),
        ("bytes=90-200", Span(90, 10)),
        ("bytes=-5", Span(95, 5)),
        ("bytes=-500", Span(0, 100)),
        ("bytes=0-1,5-6", None),
        ("bytes=20-10", None),
        ("bytes=x-", None),
        ("lines=0-1", None),
        ("bytes=-", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_range_header_names_a_span_or_is_ignored(header: str | None, span: Span | None) -> None:
    assert parse_range(header, 100) == span


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_range_without_a_byte_of_the_file_is_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableError):
        parse_range(header, 100)


@given(st.text(max_size=40), st.integers(0, 1000))
def test_span_of_any_header_lies_within_the_file(header: str, length: int) -> None:
    try:
        span = parse_range(f"bytes={header}", length)
    except UnsatisfiableError:
        return

    assert span is None or (span.length > 0 and span.start >= 0 and span.start + span.length <= length)


def test_etag_matches_in_a_list_or_weakly_or_by_star() -> None:
    assert matches('"x", W/"a"', '"a"')
    assert matches("*", '"a"')
    assert not matches('"ab"', '"a"')
    assert not matches(None, '"a"')


async def test_whole_file_is_served_with_its_type_and_may_be_kept(root: Path) -> None:
    async with client(root) as asking:
        answer = await asking.get("/packs/ab.tar.zst")

    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["content-type"] == "application/zstd"
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]


async def test_range_is_served(root: Path) -> None:
    async with client(root) as asking:
        answer = await asking.get("/packs/ab.tar.zst", headers={"range": f"bytes=5-{CHUNK_LENGTH + 9}"})

    assert answer.status_code == 206
    assert answer.content == CONTENT[5 : CHUNK_LENGTH + 10]
    assert answer.headers["content-range"] == f"bytes 5-{CHUNK_LENGTH + 9}/{len(CONTENT)}"


async def test_unsatisfiable_range_is_416(root: Path) -> None:
    async with client(root) as asking:
        answer = await asking.get("/packs/ab.tar.zst", headers={"range": f"bytes={len(CONTENT)}-"})

    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


async def test_what_the_client_has_is_not_sent_again_until_it_is_replaced(root: Path) -> None:
    file = root / "metadata" / "timestamp.json"
    async with client(root) as asking:
        first = await asking.get("/metadata/timestamp.json")
        second = await asking.get(
            "/metadata/timestamp.json", headers={"if-none-match": first.headers["etag"]}
        )
        (root / "new").write_bytes(b"[]")
        (root / "new").replace(file)
        third = await asking.get("/metadata/timestamp.json", headers={"if-none-match": first.headers["etag"]})

    assert (first.status_code, second.status_code, third.status_code) == (200, 304, 200)
    assert first.headers["cache-control"] == "no-cache"
    assert second.content == b""
    assert third.content == b"[]"


async def test_range_of_a_file_that_was_replaced_is_the_whole_new_file(root: Path) -> None:
    async with client(root) as asking:
        answer = await asking.get("/index.html", headers={"range": "bytes=0-3", "if-range": '"older"'})

    assert (answer.status_code, answer.content) == (200, b"<h1>hello</h1>")


async def test_head_has_the_length_and_no_body(root: Path) -> None:
    async with client(root) as asking:
        answer = await asking.head("/packs/ab.tar.zst")

    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.content == b""


async def test_empty_file_and_the_index_are_served(root: Path) -> None:
    async with client(root) as asking:
        assert (await asking.get("/packs/empty")).content == b""
        assert (await asking.get("/")).text == "<h1>hello</h1>"


@pytest.mark.parametrize(
    "target",
    [
        "/../private/root.pem",
        "/%2e%2e/private/root.pem",
        "/packs/..%2f..%2fprivate/root.pem",
        "//etc/passwd",
        "/packs/../../private/root.pem",
        "/.hidden",
        "/packs/.hidden",
        "/packs",
        "/packs/",
        "/missing",
        "/link",
        "/index.html/",
        "/index.html%00",
        "/" + "a" * 3000,
        "/fifo",
    ],
)
async def test_nothing_else_can_be_had(root: Path, target: str) -> None:
    (root / "link").symlink_to("../private/root.pem")
    os.mkfifo(root / "fifo")
    async with client(root) as asking:
        # By hand: a client library would tidy the path up before it asks.
        with trio.fail_after(DEADLINE_S):
            stream = await trio.open_tcp_stream(str(asking.base_url.host), int(asking.base_url.port or 0))
            async with stream:
                await stream.send_all(
                    f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
                )
                answer = b"".join([part async for part in stream])

    assert answer.startswith(b"HTTP/1.1 404")
    assert b"secret" not in answer


async def test_other_methods_are_refused(root: Path) -> None:
    async with client(root) as asking:
        answer = await asking.put("/packs/ab.tar.zst", content=b"mine")

    assert answer.status_code == 405
    assert (root / "packs" / "ab.tar.zst").read_bytes() == CONTENT


async def test_client_that_hangs_up_is_noticed_and_others_are_served(root: Path) -> None:
    with (root / "packs" / "large").open("wb") as large:
        large.truncate(1 << 36)
    files = PublicFiles(root)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(serve, application(files), bind("127.0.0.1:0"))
        with trio.fail_after(DEADLINE_S):
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(b"GET /packs/large HTTP/1.1\r\nHost: x\r\n\r\n")
                await stream.receive_some(100)
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as asking:
                assert (await asking.get("/index.html")).status_code == 200
            before = -1
            while files.bytes_sent != before:  # it ends far from the end of the 64 GiB
                before = files.bytes_sent
                await trio.sleep(0.2)
        nursery.cancel_scope.cancel()

    assert files.bytes_sent < 1 << 34


def test_taken_port_is_refused(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(ListenError, match="in use"):
            bind(f"127.0.0.1:{taken.getsockname()[1]}")
