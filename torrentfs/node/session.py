"""This module turns our settings and metainfo into libtorrent's. What happens with them is `swarm`'s."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from torrentfs.config import SwarmSettings, format_address
from torrentfs.node.sockets import Address
from torrentfs.repository.metainfo import InfoHash, Metainfo

HANDSHAKE_TIMEOUT_S = 5
CONNECT_TIMEOUT_S = 5
"""A host that is silent must not hold a dial for libtorrent's 15 s: others of the torrent wait behind it."""
RETRY_MAX = 1000
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


def open_session(settings: SwarmSettings, host: str, port: int, alert_fd: int) -> Any:
    """Start a session that listens on *host*, an IP address; *alert_fd* gets a byte when alerts are there."""
    parameters: Any = lt.session_params()
    parameters.settings = session_settings(settings, host, port)
    # Only posix has bytes in the file when it says so, and after SIGKILL: pread and mmap did not in 1–11 %.
    parameters.disk_io_constructor = "posix_disk_io_constructor"
    session = lt.session(parameters)
    session.set_alert_fd(alert_fd)
    return session


def session_settings(settings: SwarmSettings, host: str, port: int) -> dict[str, Any]:
    """Return the settings in which ours differ from libtorrent's defaults, and why."""
    category = lt.alert.category_t
    return {
        "user_agent": "torrentfs",
        "listen_interfaces": format_address(host, port),
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
            | category.piece_progress_notification
        ),
        # Nothing is announced: peers are those that we are told of.
        "enable_dht": False,
        "enable_lsd": False,
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
        "peer_connect_timeout": CONNECT_TIMEOUT_S,
        "handshake_timeout": HANDSHAKE_TIMEOUT_S,
    }


def torrent_parameters(
    metainfo: Metainfo, file: Path, have: Sequence[bool], peers: Iterable[Address], *, seed: bool
) -> Any:
    """Describe a torrent whose data lies in *file*, whatever its metainfo calls it."""
    parameters = lt.load_torrent_buffer(metainfo.torrent())
    parameters.save_path = str(file.parent)
    parameters.renamed_files = {0: file.name}
    parameters.have_pieces = list(have)
    parameters.peers = list(peers)
    flags = lt.torrent_flags
    # Paused, then resumed: that dials the peers at once instead of at the next tick, up to 1 s later.
    parameters.flags = flags.paused | flags.disable_dht | flags.disable_lsd | flags.disable_pex
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
