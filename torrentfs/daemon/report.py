"""This module puts a daemon's figures into the records that `stats` and `list` print: their keys are stable.

Pure: figures are the caller's. Bytes are payload only, as they travel (compressed); `bytes.read` is what jobs
got.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torrentfs.node import SourceStats
from torrentfs.repository.catalog import Catalog, Revision, Version
from torrentfs.repository.metainfo import InfoHash, TorrentRef


@dataclass(frozen=True, slots=True)
class Torrent:
    """What the node has of one pack or manifest: *cached* bytes, connected *peers*."""

    cached: int
    peers: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What the parts of a mount daemon count; lengths in bytes, times in seconds."""

    from_peers: int
    from_mirrors: int
    uploaded: int
    cached: int
    on_disk: int
    evicted: int
    refetched: int
    bypassed: int
    read: int
    reads_waiting: int
    wait_p50_s: float
    wait_p99_s: float
    errors: int
    failed_pieces: int
    peers: int
    sources: SourceStats


NO_TORRENT = Torrent(0, 0)


def package(
    version: Version, torrents: Mapping[InfoHash, Torrent], packs: Sequence[TorrentRef] | None
) -> dict[str, Any]:
    """Return the record of *version*'s current revision.

    *packs* is what its manifest names; None while this node has not read it: `size` is the contents' then.
    """
    revision = version.current
    refs = [revision.ref, *(packs or ())]
    held = [torrents.get(ref.info_hash, NO_TORRENT) for ref in refs]
    return {
        "path": version.path,
        "revision": revision.number,
        "infohash": revision.manifest.hex(),
        "size": revision.size if packs is None else sum(ref.length for ref in refs),
        "cached": sum(torrent.cached for torrent in held),
        # The same peer often has several of a version's torrents: the largest count is nearer the truth than
        # the sum.
        "peers": max(torrent.peers for torrent in held),
    }


def stats(
    identity: Mapping[str, Any],
    catalog: Catalog,
    age_s: float,
    figures: Figures,
    packages: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the record that `torrentfs stats --json` prints.

    *identity* is what never changes (mountpoint, pid, …); *age_s* the time since the catalog was last found
    current.
    """
    return {
        "repository": catalog.name,
        **identity,
        "catalog": {"version": catalog.version, "age_s": round(age_s, 3), "expires": catalog.expires},
        "bytes": {
            "from_peers": figures.from_peers,
            "from_mirrors": figures.from_mirrors,
            "uploaded": figures.uploaded,
            "cached": figures.cached,
            "on_disk": figures.on_disk,
            "evicted": figures.evicted,
            "refetched": figures.refetched,
            "bypassed": figures.bypassed,
            "read": figures.read,
        },
        "reads": {
            "waiting": figures.reads_waiting,
            "wait_p50_ms": round(figures.wait_p50_s * 1000, 3),
            "wait_p99_ms": round(figures.wait_p99_s * 1000, 3),
        },
        "errors": figures.errors,
        "failed_pieces": figures.failed_pieces,
        "peers": figures.peers,
        "sources": sources(figures.sources),
        "packages": list(packages),
    }


def sources(stats: SourceStats) -> dict[str, Any]:
    """Return the record of where a node's bytes came from, and whom it does not ask for now."""
    return {
        **{
            name: getattr(stats, name)
            for name in ("neighbours", "site_seeders", "upstream", "site_mirrors", "mirrors", "redundant")
        },
        "hedges": {"started": stats.hedges, "won": stats.hedges_won},
        "waits": {"started": stats.waits, "won": stats.waits_won},
        "aside": [
            {"source": one.source, "reason": one.reason, "seconds": round(one.seconds, 1)}
            for one in stats.aside
        ],
    }


def listing(catalog: Catalog) -> dict[str, Any]:
    """Return the record that `torrentfs list` prints: every path with its current revision."""
    return {
        "repository": catalog.name,
        "version": catalog.version,
        "packages": [_listed(version, version.current) for _, version in sorted(catalog.versions.items())],
        "aliases": dict(catalog.aliases),
    }


def _listed(version: Version, revision: Revision) -> dict[str, Any]:
    return {
        "path": version.path,
        "revision": revision.number,
        "infohash": revision.manifest.hex(),
        "state": version.state,
        "size": revision.size,
        "entries": revision.entries,
        "published": revision.published,
        "revisions": [one.number for one in version.revisions],
        "requires": list(version.requires),
    }
