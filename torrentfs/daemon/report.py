"""This module puts a daemon's figures into the records that `stats` and `list` print: their keys are stable.

Pure: figures are the caller's. Bytes are payload only, as they travel (compressed); `bytes.read` is what jobs
got.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torrentfs.fuse.waits import ReadStats
from torrentfs.node import NodeStats, SourceStats
from torrentfs.repository.catalog import Catalog, Revision, Version
from torrentfs.repository.metainfo import InfoHash, TorrentRef


@dataclass(frozen=True, slots=True)
class Torrent:
    """What the node has of one pack or manifest: *cached* bytes, connected *peers*."""

    cached: int
    peers: int


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
    node: NodeStats,
    reads: ReadStats,
    limits: Mapping[str, tuple[int, int]],
    packages: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the record that `torrentfs stats --json` prints.

    *identity* is what never changes (mountpoint, pid, …); *age_s* the time since the catalog was last found
    current; *limits* what is bounded beside the node's.
    """
    common = of_node(node)
    return {
        "repository": catalog.name,
        **identity,
        "catalog": {"version": catalog.version, "age_s": round(age_s, 3), "expires": catalog.expires},
        **common,
        "bytes": {**common["bytes"], "read": reads.bytes_read},
        "limits": {**common["limits"], **_limits(limits)},
        "reads": {
            "waiting": reads.waiting,
            "wait_p50_ms": round((reads.wait_p50_s or 0.0) * 1000, 3),
            "wait_p99_ms": round((reads.wait_p99_s or 0.0) * 1000, 3),
        },
        "errors": reads.errors,
        "packages": list(packages),
    }


def of_node(node: NodeStats) -> dict[str, Any]:
    """Return what mounts and seeders alike tell of their node."""
    return {
        "bytes": {
            "from_peers": node.from_peers,
            "from_mirrors": node.from_mirrors,
            "uploaded": node.uploaded,
            "cached": node.cached,
            "on_disk": node.used,
            "evicted": node.evicted,
            "refetched": node.refetched,
            "bypassed": node.bypassed,
        },
        "limits": _limits(node.limits),
        "failed_pieces": node.failed_pieces,
        "damaged_pieces": node.damaged_pieces,
        "trouble": node.trouble,
        "peers": node.peers,
        "sources": _sources(node.sources),
    }


def _limits(limits: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {name: {"used": used, "max": most} for name, (used, most) in limits.items()}


def _sources(stats: SourceStats) -> dict[str, Any]:
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
        "retires": version.retires if version.state == "retired" else None,
        "size": revision.size,
        "entries": revision.entries,
        "published": revision.published,
        "revisions": [one.number for one in version.revisions],
        "requires": list(version.requires),
    }
