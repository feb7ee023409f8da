"""This module reads conditional and range headers (RFC 9110, sections 13 and 14). No I/O.

Several ranges in one request are answered with the whole file, as the RFC allows: nobody's client needs them.
"""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """*length* bytes from *start* of a file."""

    start: int
    length: int


class UnsatisfiableError(Exception):
    """A range that has no byte of the file."""


def parse_range(header: str | None, file_length: int) -> Span | None:
    """Return which bytes are asked for; None: all of them, also where the header makes no sense.

    Raises: UnsatisfiableError.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", "").replace("\t", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(file_length - int(suffix), 0), file_length
    else:
        start, end = int(first), min(int(last) + 1, file_length) if last else file_length
        if last and int(last) < start:
            return None
    if start >= end:
        raise UnsatisfiableError
    return Span(start, end - start)


def matches(header: str | None, etag: str) -> bool:
    """Tell whether an If-None-Match or If-Range header names *etag*; a weak comparison."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or "*" in tags
