"""This module defines every setting with its unit, default and bound, and reads them from TOML.

Which file holds the settings of a mount is decided at its end; nothing else here does I/O.
"""

import difflib
import os
import re
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from torrentfs.errors import UsageError

CONFIG_DIRECTORY = Path("/etc/torrentfs")
CONFIG_LENGTH_MAX = 1024 * 1024
CONFIG_FILES_MAX = 1000
"""How many files of the directory are looked through for a mountpoint."""

CLOSE_NAMES_MAX = 3
"""How many names are offered for one that is like none."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
VariableName = Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
VariableValue = Annotated[str, Meta(pattern=r"^[^\x00]*$", max_length=1024)]


class SwarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The BitTorrent session of a node."""

    listen: str = "0.0.0.0:6881"
    """Host and port for incoming peers; port 0 takes any free one."""
    connections_max: Count = 4000
    """Of all torrents together, each with its own to the same neighbours; 6 KiB and a descriptor each. At the
    bound new torrents find no peers.
    """
    alert_queue_max: Count = 10_000


class RateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds in bytes per second; 0: none."""

    download: Bytes = 0
    upload: Bytes = 0


class SiteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The site of a node: with whom it exchanges data, and how it finds them.

    Without networks there is no site: the node speaks with the seeders that it is told of, and with whoever
    comes.
    """

    networks: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    """Networks (CIDR) whose nodes may exchange data with this one. Of all others only the configured seeders
    and peers are dialled or accepted.
    """
    seeders: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """HOST:PORT of the site's seeders."""
    mirrors: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """URLs of the site's copies of `public/`, in order; they are asked before any other."""
    trackers: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    """URLs of the site's trackers: http://HOST:PORT/announce."""
    install_method: Literal["torrent", "http"] = "torrent"
    """`http`: no BitTorrent at all, byte ranges from mirrors only."""
    local_discovery: bool = True
    """Find neighbours by multicast on the local network (BEP 14); needs networks."""
    peer_exchange: bool = True
    """Let neighbours tell of each other (BEP 11); needs networks."""
    within: RateSettings = RateSettings()
    """What all peers of the site together may take."""
    beyond: RateSettings = RateSettings()
    """What all peers outside, and mirrors that are not the site's, may take together."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cache and its sources."""

    swarm: SwarmSettings = SwarmSettings()
    site: SiteSettings = SiteSettings()
    connect_grace_s: Seconds = 0.15
    """How long a piece waits for a known but unconnected peer before mirrors are asked."""
    hedge_delay_s: Seconds = 0.5
    """How long at most a piece that a peer has may take before mirrors are asked too. Below that it is what
    nearly all of the last pieces took.
    """
    neighbour_wait_s: Annotated[float, Meta(ge=0, le=10)] = 0.25
    """Twice that at most is waited for a piece that another node of the site may be fetching, before
    it is fetched from beyond; 0: not at all.
    """
    cache_size_max: Bytes = 0
    """How many bytes of its disk the cache may take; 0: as many as there are. What was read longest ago
    goes.
    """
    free_space_min: Bytes = 0
    """How many bytes the cache leaves free on its disk for others."""
    check_rate: Bytes = 100_000_000
    """Bytes per second that are checked of what earlier starts left, before it is seeded; 0: no bound."""
    scrub_days: Annotated[float, Meta(ge=0, le=3650)] = 0.0
    """How often everything in the cache is checked against its checksum, in days; 0: never again."""
    mirror_timeout_s: Seconds = 10.0
    mirror_requests_max: Count = 8
    readahead_pieces_max: Annotated[int, Meta(ge=0, le=4096)] = 32
    frame_cache_bytes_max: Bytes = 12 * 1024 * 1024
    open_files_max: Count = 64
    pieces_in_memory_max: Count = 64
    """Pieces kept in memory where the disk has no room for them, or fails."""
    pieces_in_flight_max: Count = 4096


class MountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mount."""

    read_deadline_s: Seconds = 60.0
    """How long a job's read may wait for its bytes before it gets EIO."""
    refresh_interval_s: Seconds = 60.0
    """How often the repository is asked for a newer catalog."""
    refresh_deadline_s: Seconds = 30.0
    """How long fetching and verifying a catalog may take."""
    start_grace_s: Seconds = 5.0
    """How long a mount waits for a newer catalog before it starts with the one that it has."""
    start_deadline_s: Seconds = 60.0
    """How long `torrentfs mount` waits for the daemon to answer."""
    requests_max: Count = 4096
    """Requests under way at a time. All but 64 may wait for bytes, so that others are answered."""
    spin_us: Annotated[int, Meta(ge=0, le=1000)] = 50
    """How long the daemon looks for a next request after each before it sleeps; 0 saves CPU time."""
    background_max: Annotated[int, Meta(ge=1, le=65_535)] = 512
    """Reads that the kernel has under way; with its own 12, a few that wait hold up all others."""
    fuse: Literal["auto", "native", "pyfuse3"] = "auto"
    """Who speaks with the kernel: we ourselves, libfuse by way of pyfuse3, or whichever is better here."""
    resend: bool = True
    """Have the kernel send again what a server that died left unanswered, where it can (Linux 6.9)."""
    read_ahead_kib: Annotated[int, Meta(ge=0, le=65_536)] = 256
    """At 128 a numpy start read 58 instead of 67 MB; which is faster was lost in the machine's noise."""
    manifest_blocks_max: Count = 64
    variables: Annotated[dict[VariableName, VariableValue], Meta(max_length=256)] = {}
    """What `$(NAME)` stands for in the targets of published symbolic links."""
    show_retired: bool = False
    """Whether directories list what is retired, until it is gone."""
    source: Annotated[str, Meta(pattern=r"^[^,\\\s]{0,255}$")] = ""
    """What the kernel's table of mounts shows as mounted, by default the repository's name.

    `mount -a` compares it with fstab's first field.
    """
    owner_uid: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    """Whom files show as theirs; by default the user who mounts."""
    owner_gid: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    log_bytes_max: Annotated[int, Meta(ge=65_536, le=1 << 40)] = 4 * 1024 * 1024
    """Length at which the log is rotated; three older ones are kept."""

    @property
    def owner(self) -> tuple[int, int]:
        """Return the uid and gid that files show."""
        uid = os.geteuid() if self.owner_uid is None else self.owner_uid
        gid = os.getegid() if self.owner_gid is None else self.owner_gid
        return uid, gid


class TrackerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The seeder's own BitTorrent tracker: nodes of the site find each other by it."""

    enabled: bool = False
    interval_s: Annotated[int, Meta(ge=60, le=86_400)] = 900
    """How often a node is to announce each of its torrents; after 1.5 times that it is forgotten."""
    answer_peers_max: Annotated[int, Meta(ge=1, le=500)] = 50
    """How many nodes one is told of at a time."""
    torrent_peers_max: Count = 5_000
    address_peers_max: Count = 2_000
    """Listings of one address, over all torrents and ports."""
    peers_max: Count = 200_000
    """Listings in all, 600 bytes each."""


class SeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The origin: a seeder of a whole repository on the publisher's disk."""

    swarm: SwarmSettings = SwarmSettings()
    http: str = ""
    """Host and port of the web server for `public/`; empty: none."""
    advertise: str = ""
    """Host and port that the catalog names for peers; empty: `swarm.listen`, if that has both.

    Port 0 is the one that is listened on.
    """
    poll_interval_s: Seconds = 1.0
    """How often the repository is looked at for new revisions."""
    networks: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    """The site: networks (CIDR) whose nodes may find each other by the tracker."""
    tracker: TrackerSettings = TrackerSettings()


class BoxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's or region's pull-through seeder: what `torrentfs seed --config` needs besides a mount's."""

    http: str = ""
    """Host and port of its web server for the site; empty: none."""
    tracker: TrackerSettings = TrackerSettings()


class LdapSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's entry in an LDAP directory: settings that come from there."""

    server: str
    """ldap://HOST[:PORT] or ldaps://…"""
    base: Annotated[str, Meta(min_length=1, max_length=1024)]
    """Distinguished name of the site's entry."""
    attributes: Annotated[dict[str, str], Meta(max_length=64)]
    """Attribute of the entry by the dotted name of the setting that it gives."""
    timeout_s: Seconds = 5.0


class MountConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that one mount daemon is told; the layout of a file in /etc/torrentfs/."""

    repository: str = ""
    """URL of the repository's `public/`: http(s)://… or file://…"""
    trust: str = ""
    """Path of the root.json that the repository's publisher handed out."""
    mountpoint: str = ""
    cache: str = ""
    """Directory of the node's cache; by default one per mountpoint, below /var/cache or ~/.cache."""
    mirrors: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Further URLs with copies of `public/`."""
    peers: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    """HOST:PORT of seeders and nodes to ask, besides those that the catalog names."""
    mount: MountSettings = MountSettings()
    node: NodeSettings = NodeSettings()
    seed: BoxSettings = BoxSettings()
    ldap: LdapSettings | None = None


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of *text*, "HOST:PORT" or "[IPV6]:PORT".

    Raises: UsageError.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise UsageError(f"{text!r} is not an address: write HOST:PORT or [IPV6]:PORT")
    return match[1] or match[2], int(match[3])


Network = IPv4Network | IPv6Network


def parse_network(text: str) -> Network:
    """Return the network that *text* names, "ADDRESS/BITS"; an address alone is one of its own.

    Raises: UsageError.
    """
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        hint = f"; did you mean {ip_network(text, strict=False)}?"
    except ValueError:
        hint = ": write ADDRESS/BITS, say 10.0.0.0/8 or 2001:db8::/32"
    raise UsageError(f"{text!r} is not a network{hint}")


def format_address(host: str, port: int) -> str:
    """Return what `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Settings = TypeVar("Settings", bound=msgspec.Struct)


def convert(values: dict[str, Any], kind: type[Settings], source: str, *, strict: bool = True) -> Settings:
    """Return *values* (parsed TOML or JSON) as a *kind*, checked against its bounds.

    Without *strict*, numbers and truth values may be text.

    Raises: UsageError: names *source* and the key.
    """
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {_explain(str(error), kind)}") from None


def _explain(message: str, kind: type[msgspec.Struct]) -> str:
    """Return msgspec's *message* as "key: what is wrong with it"."""
    what, _, where = message.partition(" - at `")
    key = where.rstrip("`").removeprefix("$").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown is None:
        if what.startswith("Expected `str` matching regex"):
            what = "Spaces, commas and backslashes cannot be in it, nor more than 255 characters"
        return f"{key or 'the file'}: {what[:1].lower()}{what[1:].replace('`', '')}"
    name = f"{key}.{unknown[1]}" if key else unknown[1]
    close = _close_names(name, setting_names(kind))
    return f"{name}: there is no such setting" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _close_names(name: str, known: list[str]) -> list[str]:
    """Return the settings of *known* that the unknown *name* may stand for.

    The one whose last part is close, whatever its group; else some of the group that was named.
    """
    group, _, last = name.rpartition(".")
    lasts = {one.rpartition(".")[2]: one for one in known}
    if close := difflib.get_close_matches(last, lasts, 1):
        return [lasts[close[0]]]
    beside = [one.rpartition(".")[2] for one in known if group and one.rpartition(".")[0] == group]
    return [f"{group}.{one}" for one in difflib.get_close_matches(last, beside, CLOSE_NAMES_MAX, cutoff=0.0)]


def setting_names(kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings in *kind*, groups too."""
    names = []
    for field in msgspec.structs.fields(kind):
        names.append(prefix + field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            names += setting_names(field.type, f"{prefix}{field.name}.")
    return names


def load(file: Path, kind: type[Settings]) -> Settings:
    """Return the settings in TOML *file*.

    Raises: UsageError: names the file, and the key when one is wrong.
    """
    return convert(parse(file), kind, str(file))


def parse(file: Path) -> dict[str, Any]:
    """Return what TOML *file* itself says, without defaults and unchecked.

    Raises: UsageError: names the file.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(CONFIG_LENGTH_MAX + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if len(text) > CONFIG_LENGTH_MAX:
        raise UsageError(f"{file}: longer than {CONFIG_LENGTH_MAX} bytes, so not a configuration file")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from None


def check_names(configuration: MountConfiguration, source: str) -> None:
    """Check the URLs and addresses in *configuration*.

    Raises: UsageError: names *source* and the key.
    """
    site = configuration.node.site
    urls = {**_numbered("mirrors", configuration.mirrors), **_numbered("node.site.mirrors", site.mirrors)}
    for key, url in {"repository": configuration.repository, **urls}.items():
        if not is_url(url) and (url or key != "repository"):
            raise UsageError(
                f"{source}: {key}: {url!a} is not a repository's URL: write http://…, https://… or file:///…"
            )
    for key, url in _numbered("node.site.trackers", site.trackers).items():
        if not (is_url(url) and url.startswith("http://")):
            raise UsageError(
                f"{source}: {key}: {url!a} is not a tracker's URL: write http://HOST:PORT/announce"
            )
    addresses = {"node.swarm.listen": configuration.node.swarm.listen}
    addresses |= {"seed.http": configuration.seed.http} if configuration.seed.http else {}
    addresses |= _numbered("peers", configuration.peers) | _numbered("node.site.seeders", site.seeders)
    networks = _numbered("node.site.networks", site.networks)
    for key, text in {**addresses, **networks}.items():
        try:
            parse_network(text) if key in networks else parse_address(text)
        except UsageError as error:
            raise UsageError(f"{source}: {key}: {error}") from None


def _numbered(key: str, values: tuple[str, ...]) -> dict[str, str]:
    return {f"{key}[{index}]": value for index, value in enumerate(values)}


def is_url(text: str) -> bool:
    """Tell whether *text* is a URL that a repository's `public/` may have."""
    try:
        parts = urlsplit(text)
        web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, half an IPv6 address
        return False
    return text.isprintable() and (web or (parts.scheme == "file" and parts.netloc in ("", "localhost")))


def config_directory() -> Path:
    """Return where a mount's settings are looked for: /etc/torrentfs, or $TORRENTFS_CONFIG_DIR."""
    return Path(os.environ.get("TORRENTFS_CONFIG_DIR") or CONFIG_DIRECTORY)


def find_mount_file(mountpoint: Path) -> Path | None:
    """Return the file for *mountpoint*: the one with its last name, else the first that names it.

    Raises: UsageError: a file that had to be looked into is wrong.
    """
    directory = config_directory()
    named = directory / f"{mountpoint.name}.toml"
    if named.is_file() and load(named, MountConfiguration).mountpoint in ("", str(mountpoint)):
        return named
    for file in sorted(directory.glob("*.toml"))[:CONFIG_FILES_MAX]:
        if load(file, MountConfiguration).mountpoint == str(mountpoint):
            return file
    return None


def rejected_file(mountpoint: Path) -> tuple[Path, str] | None:
    """Return the file that has *mountpoint*'s last name and yet names another mountpoint, and which.

    Raises: UsageError: it is wrong.
    """
    named = config_directory() / f"{mountpoint.name}.toml"
    if not named.is_file():
        return None
    other = load(named, MountConfiguration).mountpoint
    return (named, other) if other not in ("", str(mountpoint)) else None


def load_mount(file: Path) -> MountConfiguration:
    """Return a mount's settings; paths in them are relative to the file's directory.

    Raises: UsageError.
    """
    configuration = load(file, MountConfiguration)
    base = file.resolve().parent
    absolute = {
        name: str(base / value)
        for name in ("trust", "cache", "mountpoint")
        if (value := getattr(configuration, name))
    }
    return msgspec.structs.replace(configuration, **absolute)
