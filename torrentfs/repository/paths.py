"""This module decides where in a tree a package may live. Whose path it is, is the catalog's concern."""

import re
from collections.abc import Iterable
from typing import Final

from torrentfs.errors import UsageError

PATH_LENGTH_MAX: Final = 1024
COMPONENT_LENGTH_MAX: Final = 255
PATH_DEPTH_MAX: Final = 16
RESERVED: Final = ".revisions"
"""The first component under which every revision can be reached by its own name; no path lies there."""

_REVISION: Final = re.compile("@[0-9]+$")
"""What ends a revision's name: beside a path ``q``, ``q@1/y`` would make ``.revisions/q@1/y@1`` ambiguous."""

_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f]")
"""All of Unicode's category Cc."""


def check_path(path: str) -> str:
    """Return *path* if a package may live there, relative to the root of the tree, parts joined by ``/``.

    Raises:
        UsageError: it says which rule is broken.
    """
    shown = ascii(path[:80])
    if not path or len(_utf8(path)) > PATH_LENGTH_MAX:
        raise UsageError(f"path {shown}: from 1 to {PATH_LENGTH_MAX} bytes are wanted")
    components = path.split("/")
    if len(components) > PATH_DEPTH_MAX:
        raise UsageError(f"path {shown}: more than {PATH_DEPTH_MAX} directories deep")
    if any(component in ("", ".", "..") for component in components):
        raise UsageError(
            f"path {shown}: write it without leading or trailing '/', and without '//', '.' or '..'"
        )
    if any(len(_utf8(component)) > COMPONENT_LENGTH_MAX for component in components):
        raise UsageError(f"path {shown}: a name in it is longer than {COMPONENT_LENGTH_MAX} bytes")
    if _CONTROL.search(path):
        raise UsageError(f"path {shown}: control characters cannot be part of it")
    if any(_REVISION.search(component) for component in components):
        raise UsageError(f"path {shown}: '@' and a number at the end of a name stand for a revision")
    if components[0] == RESERVED:
        raise UsageError(f"path {shown}: {RESERVED} is where revisions are reached by their own names")
    return path


def check_nesting(paths: Iterable[str]) -> None:
    """Check that no path occurs twice or lies inside another.

    Raises:
        UsageError: names both.
    """
    # With the separator sorted below every other character, what lies inside a path follows it directly.
    last = ""
    for path in sorted((path + "/" for path in paths), key=lambda path: path.replace("/", "\0")):
        if last and path.startswith(last):
            raise UsageError(
                f"path {path[:-1]}: {last[:-1]} is in the way, as no path can lie inside another"
            )
        last = path


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"path {text[:80]!a}: it is not UTF-8") from error
