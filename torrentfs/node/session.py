"""This module turns our settings and metainfo into libtorrent's. What happens with them is `swarm`'s."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from torrentfs.config import SwarmSettings, format_address
from torrentfs.node.site import Site
from torrentfs.node.sockets import Address
from torrentfs.repository.metainfo import InfoHash, Metainfo

HANDSHAKE_TIMEOUT_S = 5
CONNECT_TIMEOUT_S = 5
"""A host that is silent must not hold a dial for libtorrent's 15 s: others of the torrent wait behind it."""
RETRY_MAX = 1000
TICK_MS, LIMITED_TICK_MS = 500, 100
SEND_BUFFER_BYTES = 4 * 1024 * 1024
"""How much of what a peer asked for is read ahead into its socket's queue."""

_COUNTERS = {
    "uploaded": "net.sent_payload_bytes",
    "downloaded": "net.recv_payload_bytes",
    "redundant": "net.recv_redundant_bytes",
    "failed": "net.recv_failed_bytes",
    "peers": "peer.num_peers_connected",
}


@dataclass(frozen=True, slots=True)
class SwarmCounters:
    """Payload bytes of the session since its start, without any protocol's overhead."""

    uploaded: int
    downloaded: int
    """Everything that peers sent, wanted or not."""
    redundant: int
    failed: int
    peers: int
    torrent_peers: dict[InfoHash, int]


def open_session(settings: SwarmSettings, site: Site, host: str, port: int, alert_fd: int) -> Any:
    """Start a session that listens on *host*, an IP address; *alert_fd* gets a byte when alerts are there.

    Where the site wants no BitTorrent it listens nowhere, and dials nobody.
    """
    parameters: Any = lt.session_params()
    parameters.settings = session_settings(settings, site, host, port)
    if site.is_bounded:
        parameters.ip_filter = site.filter()
    # Only posix has bytes in the file when it says so, and after SIGKILL: pread and mmap did not in 1–11 %.
    parameters.disk_io_constructor = "posix_disk_io_constructor"
    session = lt.session(parameters)
    session.set_alert_fd(alert_fd)
    site.limit(session)
    return session


def session_settings(settings: SwarmSettings, site: Site, host: str, port: int) -> dict[str, Any]:
    """Return the settings in which ours differ from libtorrent's defaults, and why."""
    category = lt.alert.category_t
    return {
        "user_agent": "torrentfs",
        "listen_interfaces": format_address(host, port) if site.has_peers else "",
        "enable_outgoing_tcp": site.has_peers,
        "enable_incoming_tcp": site.has_peers,
        # A port that is taken is an error, not a reason to take another.
        "max_retry_port_bind": 0,
        "listen_system_port_fallback": False,
        "listen_queue_size": 128,
        "alert_queue_size": settings.alert_queue_max,
        "alert_mask": int(
            category.error_notification
            | category.status_notification
            | category.storage_notification
            | category.connect_notification
            | category.peer_notification
            | category.tracker_notification
            | category.piece_progress_notification
        ),
        "enable_dht": False,
        "enable_lsd": site.is_searched,
        # Each knows others of a torrent's peers; else only the first that answers is asked.
        "announce_to_all_trackers": True,
        "announce_to_all_tiers": True,
        # Else a torrent that is paused and resumed to dial at once says "stopped", and nothing after that.
        "stop_tracker_timeout": 0,
        # Bounded rates are shared out at each tick: at the usual 500 ms the first piece took 1.5 s, here 0.8.
        "tick_interval": LIMITED_TICK_MS if site.is_limited else TICK_MS,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_ip_notifier": False,
        # uTP streams 13 MB/s.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        "out_enc_policy": int(lt.enc_policy.pe_disabled),
        # A leecher that wants nothing yet would be dropped by seeds, and its next read hang.
        "close_redundant_connections": False,
        "allow_multiple_connections_per_ip": True,
        "connections_limit": settings.connections_max,
        "unchoke_slots_limit": -1,
        "send_buffer_watermark": SEND_BUFFER_BYTES,
        # With these a peer that went away is dialled once a second (all torrents together: connection_speed,
        # 30 a second), and `swarm` may dial at once; with the defaults it is given up after three attempts.
        "min_reconnect_time": 0,
        "max_failcount": RETRY_MAX,
        # So many found peers of a torrent are dialled at once, later ones at the next tick; 256 acts as 0.
        "torrent_connect_boost": 255,
        "peer_connect_timeout": CONNECT_TIMEOUT_S,
        "handshake_timeout": HANDSHAKE_TIMEOUT_S,
    }


def torrent_parameters(
    metainfo: Metainfo,
    file: Path,
    have: Sequence[bool],
    peers: Iterable[Address],
    site: Site,
    own: Iterable[Address] = (),
    *,
    seed: bool,
) -> Any:
    """Describe a torrent whose data lies in *file*, whatever its metainfo calls it.

    *own* is where we listen: neighbours and some trackers tell of us too, and we would dial ourselves.
    """
    parameters = lt.load_torrent_buffer(metainfo.torrent())
    parameters.save_path = str(file.parent)
    parameters.renamed_files = {0: file.name}
    parameters.have_pieces = list(have)
    parameters.peers = list(peers) if site.has_peers else []
    parameters.banned_peers = list(own)
    flags = lt.torrent_flags
    # Paused, then resumed: that dials the peers at once instead of at the next tick, up to 1 s later. Without
    # apply_ip_filter the session's filter means nothing.
    parameters.flags = flags.paused | flags.disable_dht | flags.apply_ip_filter
    if not site.is_searched:
        parameters.flags |= flags.disable_lsd
    if not site.is_talkative:
        parameters.flags |= flags.disable_pex
    if site.has_peers:
        parameters.trackers = list(site.settings.trackers)
        parameters.tracker_tiers = list(range(len(site.settings.trackers)))
    # What readers ask ahead comes in the order of the file, not rarest first.
    parameters.flags |= flags.sequential_download
    if seed:
        # Each piece is verified before its first upload; priorities would switch that off.
        parameters.flags |= flags.seed_mode
    else:
        # Not the flag default_dont_download: that sends data to a hidden .parts file.
        parameters.piece_priorities = [0] * metainfo.piece_count
    return parameters


def read_counters(values: Mapping[str, int], torrent_peers: dict[InfoHash, int]) -> SwarmCounters:
    """Pick our counters out of the values of a session_stats_alert."""
    return SwarmCounters(
        torrent_peers=torrent_peers, **{field: values[metric] for field, metric in _COUNTERS.items()}
    )
