"""This module lays out a cache's directory on disk: whose it is, what lies where, what it takes of the disk.

lock               flock of the one daemon that uses the cache; holds its pid
state.sqlite       claims, see `state`
packs/             <info-hash>.tar.zst, sparse
manifests/         <info-hash>.manifest, sparse
metainfo/          <info-hash>.torrent
leaving/           what is being deleted
"""

import fcntl
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from torrentfs.errors import CacheError
from torrentfs.node.state import BLOCK
from torrentfs.repository.metainfo import TORRENT_LENGTH_MAX, InfoHash, Kind, Metainfo

LEAVING, LOCK = "leaving", "lock"
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)


def lay_out(directory: Path) -> None:
    """Make what is not there yet. Raises: CacheError: it is no place for a cache; OSError."""
    places = (directory, directory / "public")
    if any((place / "metadata" / "timestamp.json").exists() for place in places):
        # The origin's packs lie under the same names: a cache there would write into them.
        raise CacheError(f"{directory} is a published repository, not a cache: name another directory")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in ("packs", "manifests", "metainfo", LEAVING):
        (directory / name).mkdir(mode=0o755, exist_ok=True)


def lock(directory: Path) -> int:
    """Return the lock, a descriptor. Raises: CacheError: another daemon has it; OSError."""
    path = directory / LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "?"
        os.close(lock)
        raise CacheError(f"the cache {path.parent} is in use by process {holder}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def metainfo_path(directory: Path, info_hash: InfoHash) -> Path:
    """Return where the kept ``.torrent`` lies."""
    return directory / "metainfo" / f"{info_hash.hex()}.torrent"


def read_metainfo(directory: Path, info_hash: InfoHash) -> bytes | None:
    """Return the kept ``.torrent``, unchecked; None when there is none. Raises: CacheError."""
    try:
        with metainfo_path(directory, info_hash).open("rb") as file:
            return file.read(TORRENT_LENGTH_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cannot read {error.filename}: {error.strerror}") from error


def write_metainfo(directory: Path, metainfo: Metainfo) -> int:
    """Keep a ``.torrent``; return its length. Raises: OSError."""
    path = metainfo_path(directory, metainfo.info_hash)
    part = path.with_suffix(".part")
    length = part.write_bytes(metainfo.torrent())
    part.replace(path)
    return length


def put_aside(directory: Path, path: Path) -> None:
    """Take a file out of the way at once, for `empty` to delete. Raises: OSError."""
    path.rename(directory / LEAVING / f"{path.name}.{time.monotonic_ns()}")


def empty(directory: Path) -> None:
    """Delete what was put aside: 0.1 s for 500 MB. Call it from a thread. Raises: OSError."""
    for path in (directory / LEAVING).iterdir():
        path.unlink(missing_ok=True)


def strays(directory: Path, known: Collection[Path]) -> dict[tuple[Kind, InfoHash], int]:
    """Return data that is not *known*, and its bytes on disk; put aside what nobody could check.

    Raises: OSError.
    """
    found = {}
    for kind in Kind:
        for path in (directory / kind.url_path(InfoHash(bytes(32)))).parent.iterdir():
            if path in known:
                continue
            name = path.name.removesuffix(kind.suffix)
            info_hash = InfoHash(bytes.fromhex(name)) if _HEX.fullmatch(name) else None
            if info_hash is None or not metainfo_path(directory, info_hash).exists():
                put_aside(directory, path)
            else:
                found[kind, info_hash] = BLOCK * path.stat().st_blocks
    return found


def measure(directory: Path) -> int:
    """Return the bytes on disk of all but packs, manifests and state: 5 µs a file. Raises: OSError."""
    taken = 0
    for place, inner, names in os.walk(directory):
        is_top = place == str(directory)
        if is_top:
            inner[:] = sorted({*inner} - {"packs", "manifests", LEAVING})
        for name in names:
            if not (is_top and name.startswith("state.sqlite")):
                with suppress(FileNotFoundError):
                    taken += BLOCK * Path(place, name).lstat().st_blocks
    return taken
