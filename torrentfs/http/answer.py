"""This module answers a GET or HEAD for one file that never changes: ranges, ETag, the body in chunks.

Where the bytes come from is a `Source`'s: a disk (`static`), or a cache that has yet to fetch them (`pull`).
"""

import re
from pathlib import Path
from typing import Protocol

import trio
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from torrentfs.http.ranges import Span, UnsatisfiableError, matches, parse_range

CHUNK_LENGTH = 256 * 1024
SEND_DEADLINE_S = 60.0
"""How long a client may take to swallow a chunk."""
METHODS = ("GET", "HEAD")

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".torrent": "application/x-bittorrent",
    ".zst": "application/zstd",
}
# Named by their hash or version.
_IMMUTABLE = re.compile(r"(?:packs|manifests|targets)/.+|metadata/\d+\..+", re.ASCII)


class UnavailableError(Exception):
    """Bytes that cannot be had: the HTTP *status* that says so, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with it."""
        await PlainTextResponse(f"{self}\n", self.status)(scope, receive, send)


class Source(Protocol):
    """A file; *headers* holds its ETag."""

    @property
    def length(self) -> int: ...

    @property
    def headers(self) -> dict[str, str]: ...

    @property
    def may_wait(self) -> bool:
        """Whether reading may take so long that the client goes meanwhile."""

    async def read(self, offset: int, length: int, following: int) -> bytes:
        """Return *length* bytes at *offset*, fewer where the file ends under our hands.

        The *following* bytes after those are asked for next, unless the client goes.

        Raises: UnavailableError.
        """


class Answers:
    """Sends files, and counts what it sent."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        """Payload of all bodies so far, handed to the server."""

    async def answer(self, file: Source, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for *file*."""
        asked = Headers(scope=scope)
        if matches(asked.get("if-none-match"), file.headers["etag"]):
            await Response(None, 304, file.headers)(scope, receive, send)
            return
        condition = asked.get("if-range")
        try:
            span = parse_range(
                asked.get("range") if condition in (None, file.headers["etag"]) else None, file.length
            )
        except UnsatisfiableError:
            headers = {"content-range": f"bytes */{file.length}"}
            await PlainTextResponse("no such range\n", 416, headers)(scope, receive, send)
            return
        start = _start(file, span)
        body = span or Span(0, file.length)
        if scope["method"] == "HEAD" or not body.length:
            await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await self._send(file, start, body, scope, receive, send)

    async def _send(
        self, file: Source, start: Message, body: Span, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send an answer; stop when the client hangs up, of which `send` itself would say nothing."""
        async with trio.open_nursery() as nursery:
            if file.may_wait or body.length > CHUNK_LENGTH:
                nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            try:
                await self._send_chunks(file, start, body, send)
            except UnavailableError as error:
                # Nothing was sent yet.
                await error.answer(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _send_chunks(self, file: Source, start: Message, body: Span, send: Send) -> None:
        """Send head and body. Raises: UnavailableError: not even the first bytes can be had."""
        offset, end = body.start, body.start + body.length
        while offset < end:
            length = min(CHUNK_LENGTH, end - offset)
            try:
                data = await file.read(offset, length, end - offset - length)
            except UnavailableError:
                if offset == body.start:
                    raise
                data = b""
            if offset == body.start:
                # Only now: whoever cannot be given the first byte is told so by the status.
                await send(start)
            offset += len(data)
            # A body that is cut short ends the connection: so HTTP says that it is.
            more = offset < end and bool(data)
            # Before: with the last one the server may tell of the client's end, and we are cancelled here.
            self.bytes_sent += len(data)
            with trio.fail_after(SEND_DEADLINE_S):
                await send({"type": "http.response.body", "body": data, "more_body": more})
            if not data:
                return


def headers_of(name: str, etag: str) -> dict[str, str]:
    """Return the headers of the file *name* of `public/`."""
    return {
        "accept-ranges": "bytes",
        "cache-control": "public, max-age=31536000, immutable" if _IMMUTABLE.fullmatch(name) else "no-cache",
        "content-type": _CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream"),
        "etag": etag,
        "x-content-type-options": "nosniff",
    }


async def refuse_method(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request by another method than `METHODS`."""
    await PlainTextResponse("GET or HEAD\n", 405, {"allow": "GET, HEAD"})(scope, receive, send)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for what is not here."""
    await PlainTextResponse("not found\n", 404)(scope, receive, send)


def _start(file: Source, span: Span | None) -> Message:
    """Return the head of an answer with all of *file*, or with *span* of it."""
    headers = {**file.headers, "content-length": str(span.length if span else file.length)}
    if span:
        headers["content-range"] = f"bytes {span.start}-{span.start + span.length - 1}/{file.length}"
    return {
        "type": "http.response.start",
        "status": 206 if span else 200,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
    }


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # a body, which nobody asked for
    scope.cancel()
