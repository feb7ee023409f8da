"""This module gives settings of a site from its LDAP entry, and keeps the last that it had of them.

How settings from there, from a file and from the command line are joined is `settings`'s concern; speaking
LDAP is `ldap`'s, in a process of its own.
"""

import importlib.util
import logging
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from torrentfs.config import LdapSettings, MountConfiguration, check_names, convert
from torrentfs.errors import FetchError, FormatError, UsageError

ALLOWED = (
    "mirrors",
    "peers",
    "node.site.networks",
    "node.site.seeders",
    "node.site.mirrors",
    "node.site.trackers",
    "node.site.install_method",
    "node.site.local_discovery",
    "node.site.peer_exchange",
    "node.site.within.download",
    "node.site.within.upload",
    "node.site.beyond.download",
    "node.site.beyond.upload",
)
"""What may come from there: with whom bytes are exchanged; never whom a node trusts, nor where it writes."""
LISTS = ("mirrors", "peers", "networks", "seeders", "trackers")
ANSWER_LENGTH_MAX = 1024 * 1024
ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,127}|[0-9]+(\.[0-9]+){1,31}")
"""RFC 4512, 1.4: a name or an object identifier."""

log = logging.getLogger(__name__)

Values = dict[str, Any]
"""Values of settings by their dotted names, as TOML has them."""


class Question(msgspec.Struct, frozen=True):
    """Which *attributes* of the entry *base* are asked for, at *server* (a URL), within *timeout_s*."""

    server: str
    base: str
    attributes: list[str]
    timeout_s: float


class Answer(msgspec.Struct, frozen=True):
    """The entry's values, by attribute as it was asked for; or what was wrong."""

    values: dict[str, list[str]] = {}
    error: str = ""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry gave, and when, in seconds since 1970."""

    time: float
    values: Values


def site_values(settings: LdapSettings, directory: Path, source: str) -> Values:
    """Return the settings that the site's entry gives; *directory* keeps them for when it cannot be asked.

    When the directory server is away, or its entry is wrong, the last known values serve; without those, none
    do. Either is warned of: a node is to start.

    Raises: UsageError: *settings*, of *source*, are wrong, or ldap3 is missing.
    """
    _check(settings, source)
    key = sha256(msgspec.json.encode((settings.server, settings.base, sorted(settings.attributes.items()))))
    file = directory / f"ldap-{key.hexdigest()[:16]}.json"
    try:
        values = _converted(settings, _ask(settings))
    except (FetchError, FormatError) as error:
        return _last_known(settings, file, str(error))
    _keep(file, values)
    return values


def _check(settings: LdapSettings, source: str) -> None:
    """Raises: UsageError."""
    try:
        parts = urlsplit(settings.server)
        known = parts.scheme in ("ldap", "ldaps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(
            f"{source}: ldap.server: {settings.server!a} is no LDAP server: write ldap://HOST[:PORT] or ldaps://…"
        )
    for name, attribute in settings.attributes.items():
        if name not in ALLOWED:
            raise UsageError(
                f"{source}: ldap.attributes: {name} cannot come from LDAP, only {', '.join(ALLOWED)}"
            )
        if not ATTRIBUTE.fullmatch(attribute):
            raise UsageError(f"{source}: ldap.attributes: {name}: {attribute!a} is no attribute's name")
    if importlib.util.find_spec("ldap3") is None:
        raise UsageError(f"{source}: ldap: needs the Python package ldap3: pip install 'torrentfs[ldap]'")


def _ask(settings: LdapSettings) -> dict[str, list[str]]:
    """Return the values of the entry by attribute.

    Raises: FetchError.
    """
    attributes = sorted(set(settings.attributes.values()))
    question = Question(settings.server, settings.base, attributes, settings.timeout_s)
    # -P: whoever's directory this is started in must not become a place for modules.
    command = [sys.executable, "-P", "-m", "torrentfs.daemon.ldap"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(question),
            capture_output=True,
            timeout=settings.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"no answer within {settings.timeout_s:g} s") from None
    except OSError as error:
        raise FetchError(f"asking it failed: {error.strerror}") from None
    if done.returncode or len(done.stdout) > ANSWER_LENGTH_MAX:
        raise FetchError(f"asking it failed: {' '.join(done.stderr.decode(errors='replace').split())[-200:]}")
    answer = msgspec.json.decode(done.stdout, type=Answer)
    if answer.error:
        raise FetchError(answer.error)
    return answer.values


def _converted(settings: LdapSettings, entry: dict[str, list[str]]) -> Values:
    """Return what *entry* says, by setting.

    Raises: FormatError: names the attribute and the setting that has another kind of value.
    """
    values = {}
    for name, attribute in settings.attributes.items():
        if texts := entry.get(attribute):
            values[name] = _value(name, texts, f"attribute {attribute}")
    return values


def _value(name: str, texts: list[str], source: str) -> Any:
    """Return *texts* as the value of the setting *name*.

    Raises: FormatError: names *source* and the setting.
    """
    given: Any = texts
    if name.rpartition(".")[2] not in LISTS:
        if len(texts) > 1:
            raise FormatError(f"{source}: {name}: {len(texts)} values where one is wanted")
        # Values are compared without case: Torrent, TRUE.
        given = texts[0].lower()
    try:
        checked = convert(nested({name: given}), MountConfiguration, source, strict=False)
        check_names(checked, source)
    except UsageError as error:
        raise FormatError(str(error)) from None
    found: Any = msgspec.to_builtins(checked)
    for part in name.split("."):
        found = found[part]
    return found


def nested(values: Values) -> dict[str, Any]:
    """Return *values* in the shape of a settings file."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        table = tables
        for group in groups:
            table = table.setdefault(group, {})
        table[last] = value
    return tables


def _keep(file: Path, values: Values) -> None:
    """Write *values* for a later start; a node starts without that too."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(msgspec.json.encode(_Kept(time.time(), values)))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        log.warning("%s: settings from LDAP are not kept for later: %s", file, error.strerror)


def _last_known(settings: LdapSettings, file: Path, reason: str) -> Values:
    """Return what the entry gave the last time, or nothing, and warn that *reason* made it so."""
    where = f"{settings.server}: {settings.base}: {reason}"
    try:
        with file.open("rb") as stream:
            data = stream.read(ANSWER_LENGTH_MAX)
        kept = msgspec.json.decode(data, type=_Kept)
        values = {name: value for name, value in kept.values.items() if name in settings.attributes}
        check_names(convert(nested(values), MountConfiguration, str(file)), str(file))
    except FileNotFoundError:
        log.warning("%s; no values of it are known: going on with the file's settings", where)
        return {}
    except (OSError, msgspec.DecodeError, UsageError) as error:
        log.warning("%s; going on with the file's settings: those kept are of no use: %s", where, error)
        return {}
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(kept.time))
    age_h = max(0.0, time.time() - kept.time) / 3600
    log.warning("%s; going on with its values of %s (%.1f h ago)", where, since, age_h)
    return values
