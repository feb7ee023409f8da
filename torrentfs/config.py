"""This module defines every setting with its unit, default and bound. Reading files is at its end; nothing else here does I/O."""

import msgspec


class SwarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The BitTorrent session of a node."""

    listen: str = "0.0.0.0:6881"
    """Host and port for incoming peers; port 0 takes any free one."""
    connections_max: int = 500
    alert_queue_max: int = 10_000


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cache and its sources."""

    swarm: SwarmSettings = SwarmSettings()
    connect_grace_s: float = 0.15
    """How long a piece waits for a known but unconnected peer before mirrors are asked."""
    hedge_delay_s: float = 0.5
    """How long a piece that a connected peer was asked for may take before mirrors are asked too."""
    mirror_timeout_s: float = 10.0
    mirror_requests_max: int = 8
    readahead_pieces_max: int = 32
    frame_cache_bytes_max: int = 16 * 1024 * 1024
    open_files_max: int = 64
    pieces_in_flight_max: int = 4096


class MountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mount."""

    read_deadline_s: float = 60.0
    refresh_interval_s: float = 60.0
    requests_max: int = 1024
    background_max: int = 512
    read_ahead_kib: int = 256
    manifest_blocks_max: int = 64
