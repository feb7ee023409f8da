"""This module joins a mount's settings from file and command line, and checks them before a start."""

import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from torrentfs.config import (
    MountConfiguration,
    check_names,
    config_directory,
    convert,
    find_mount_file,
    load_mount,
    rejected_file,
)
from torrentfs.daemon.mountpoint import resolve
from torrentfs.errors import MountError, TrustError, UsageError

TRUST_LENGTH_MAX = 1024 * 1024
JOINED = ("peers", "mirrors")
"""Lists that the command line adds to; anything else there replaces what the file says."""


def complete(mountpoint: Path, file: Path | None, values: dict[str, Any]) -> MountConfiguration:
    """Return the settings for *mountpoint*: those of *file* (or the one that is found), then *values*.

    Raises: UsageError: something is missing or wrong. TrustError: there is no such root.json.
    """
    place = resolve(mountpoint)
    if file is None and "repository" not in values:
        file = find_mount_file(place)
    base = load_mount(file) if file else MountConfiguration()
    if file:
        # By itself: what is wrong is to be named where it was written.
        check_names(base, str(file))
    joined = _merge(msgspec.to_builtins(base), values)
    joined["mountpoint"] = str(place)
    configuration = convert(joined, MountConfiguration, "command line")
    check_names(configuration, "command line")
    if not configuration.repository or not configuration.trust:
        raise UsageError(f"{mountpoint}: {_what_is_missing(place, file)}")
    if not configuration.cache:
        configuration = msgspec.structs.replace(configuration, cache=str(default_cache(place)))
    _check(configuration)
    return configuration


def _what_is_missing(place: Path, file: Path | None) -> str:
    """Return what to do when repository or trust of a mount at *place* is not known."""
    if file:
        return f"{file} must say repository and trust, or give --repository and --trust"
    rejected = rejected_file(place)
    if rejected:
        named, other = rejected
        return f"{named} names another mountpoint, {other}; correct that, or give --config {named}"
    return f"give --repository and --trust, or write {config_directory()}/{place.name}.toml"


def default_cache(mountpoint: Path) -> Path:
    """Return where the node of *mountpoint* keeps its cache when nobody says."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path("/var/cache") if os.geteuid() == 0 else Path(user)
    return base / "torrentfs" / str(mountpoint).strip("/").replace("-", "--").replace("/", "-")


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return *base* with *values* over it, group by group."""
    merged = dict(base)
    for name, value in values.items():
        below = merged.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[name] = _merge(below, value)
        elif name in JOINED and isinstance(value, list):
            merged[name] = [*merged.get(name, ()), *value]
        else:
            merged[name] = value
    return merged


def _check(configuration: MountConfiguration) -> None:
    """Find out what would fail later, so that it can be said in one line.

    Raises: UsageError, TrustError.
    """
    try:
        msgspec.json.encode(configuration)
    except UnicodeEncodeError as error:
        raise UsageError(f"{error.object!a}: names in settings must be UTF-8") from None
    trust = Path(configuration.trust)
    try:
        length = trust.stat().st_size
    except OSError as error:
        raise TrustError(
            f"{trust}: {error.strerror}; the repository's publisher hands out its root.json"
        ) from None
    if not trust.is_file() or not 0 < length <= TRUST_LENGTH_MAX:
        raise TrustError(f"{trust} is not a repository's root.json")


def check_mountpoint(mountpoint: Path) -> None:
    """Tell whether a filesystem can be mounted at *mountpoint* on this machine.

    Raises: MountError.
    """
    try:
        status = mountpoint.stat()
    except OSError as error:
        raise MountError(f"{mountpoint}: {error.strerror}; make the directory first") from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{mountpoint} is not a directory")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("/dev/fuse is missing or closed to this user: modprobe fuse, or see docs/admin.md")
