"""This module joins a mount's settings from LDAP, file and command line, and checks them before a start.

What the command line says wins over the file, what the file says over the site's LDAP entry, and that over
defaults.
"""

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
    parse,
    rejected_file,
)
from torrentfs.daemon.entry import nested, site_values
from torrentfs.daemon.mountpoint import resolve
from torrentfs.errors import MountError, TrustError, UsageError

TRUST_LENGTH_MAX = 1024 * 1024
JOINED = ("peers", "mirrors")
"""Lists that the command line adds to; anything else there replaces what the file says."""


def complete(mountpoint: Path, file: Path | None, values: dict[str, Any]) -> MountConfiguration:
    """Return the settings for *mountpoint*: those of *file* (or the one that is found), then *values*.

    When they name an LDAP entry, it is asked; see `with_entry`.

    Raises: UsageError: something is missing or wrong. TrustError: there is no such root.json.
    """
    place = resolve(mountpoint)
    if file is None and "repository" not in values:
        file = find_mount_file(place)
    base = load_mount(file) if file else MountConfiguration()
    if file:
        # By itself: what is wrong is to be named where it was written.
        check_names(base, str(file))
    configuration = _joined(base, values, place)
    if not configuration.repository or not configuration.trust:
        raise UsageError(f"{mountpoint}: {_what_is_missing(place, file)}")
    _check(configuration)
    if configuration.ldap:
        told = msgspec.structs.replace(base, ldap=configuration.ldap, cache=configuration.cache)
        configuration = _joined(with_entry(told, file), values, place)
    return configuration


def _joined(base: MountConfiguration, values: dict[str, Any], place: Path) -> MountConfiguration:
    """Return *base* with *values* of the command line, for a mount at *place*.

    Raises: UsageError.
    """
    joined = _merge(msgspec.to_builtins(base), values)
    joined["mountpoint"] = str(place)
    joined["cache"] = joined["cache"] or str(default_cache(place))
    configuration = convert(joined, MountConfiguration, "command line")
    check_names(configuration, "command line")
    return configuration


def with_entry(configuration: MountConfiguration, file: Path | None) -> MountConfiguration:
    """Return *configuration*, made of *file*, with what the site's LDAP entry says and *file* does not.

    It waits for the directory, `ldap.timeout_s` at most. The last known values are kept in the cache.

    Raises: UsageError: the settings under `ldap` are wrong.
    """
    if configuration.ldap is None:
        return configuration
    source = str(file) if file else "command line"
    found = site_values(configuration.ldap, Path(configuration.cache), source)
    said = parse(file) if file else {}
    silent = {name: value for name, value in found.items() if not _says(said, name)}
    joined = _merge(msgspec.to_builtins(configuration), nested(silent))
    return convert(joined, MountConfiguration, f"LDAP entry {configuration.ldap.base}")


def _says(said: dict[str, Any], name: str) -> bool:
    """Tell whether *said*, in the shape of a settings file, has the dotted *name*."""
    found: Any = said
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


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
