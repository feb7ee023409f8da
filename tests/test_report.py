"""The records of `stats` and `list`: stable keys, and sums that are right."""

from torrentfs.daemon import report
from torrentfs.fuse.waits import ReadStats
from torrentfs.node import Aside, NodeStats, SourceStats
from torrentfs.repository.catalog import Catalog, Ordinal, Revision, Version
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef

MANIFEST = InfoHash(b"m" * 32)
PACK = TorrentRef(InfoHash(b"p" * 32), 1000, Kind.PACK)
OLD_PACK = TorrentRef(InfoHash(b"o" * 32), 500, Kind.PACK)


def version(path: str = "ROOT/v6") -> Version:
    revision = Revision(
        number=3,
        ordinal=Ordinal(9),
        manifest=MANIFEST,
        length=100,
        mode=0o40755,
        mtime_ns=0,
        size=7777,
        entries=5,
        nlink=2,
        published=1_700_000_000,
    )
    return Version(path, (revision,))


NODE = NodeStats(
    from_peers=1,
    from_mirrors=2,
    redundant=17,
    uploaded=3,
    cached=4,
    used=22,
    evicted=23,
    refetched=24,
    bypassed=25,
    waiting=0,
    peers=11,
    failed_pieces=10,
    damaged_pieces=26,
    cache_errors=0,
    trouble="no room",
    limits={"node.open_files_max": (27, 28)},
    sources=SourceStats(
        neighbours=12,
        site_seeders=13,
        upstream=14,
        site_mirrors=15,
        mirrors=16,
        redundant=17,
        hedges=18,
        hedges_won=19,
        waits=20,
        waits_won=21,
        aside=(Aside("http://origin", "HTTP status 500", 1.26),),
    ),
)
READS = ReadStats(bytes_read=5, waiting=6, waits=30, wait_p50_s=0.007, wait_p99_s=0.008, errors=9)


def test_stats_have_the_stable_keys() -> None:
    catalog = Catalog(name="alice", version=12)

    identity, limits = {"mountpoint": "/opt/alice", "pid": 13}, {"mount.requests_max": (1, 2)}
    record = report.stats(identity, catalog, 14.0, NODE, READS, limits, [{"path": "x"}])

    assert record["repository"] == "alice"
    assert (record["mountpoint"], record["pid"]) == ("/opt/alice", 13)
    assert (record["catalog"]["version"], record["catalog"]["age_s"]) == (12, 14.0)
    assert record["bytes"] == {
        "from_peers": 1,
        "from_mirrors": 2,
        "uploaded": 3,
        "cached": 4,
        "on_disk": 22,
        "evicted": 23,
        "refetched": 24,
        "bypassed": 25,
        "read": 5,
    }
    assert (record["damaged_pieces"], record["trouble"]) == (26, "no room")
    assert record["limits"] == {
        "node.open_files_max": {"used": 27, "max": 28},
        "mount.requests_max": {"used": 1, "max": 2},
    }
    assert (record["failed_pieces"], record["peers"]) == (10, 11)
    assert record["reads"] == {"waiting": 6, "wait_p50_ms": 7.0, "wait_p99_ms": 8.0}
    assert (record["errors"], record["packages"]) == (9, [{"path": "x"}])
    assert record["sources"] == {
        "neighbours": 12,
        "site_seeders": 13,
        "upstream": 14,
        "site_mirrors": 15,
        "mirrors": 16,
        "redundant": 17,
        "hedges": {"started": 18, "won": 19},
        "waits": {"started": 20, "won": 21},
        "aside": [{"source": "http://origin", "reason": "HTTP status 500", "seconds": 1.3}],
    }


def test_a_package_counts_its_manifest_and_all_packs_that_it_uses() -> None:
    torrents = {MANIFEST: report.Torrent(100, 1), PACK.info_hash: report.Torrent(250, 2)}

    record = report.package(version(), torrents, [PACK, OLD_PACK])

    assert record == {
        "path": "ROOT/v6",
        "revision": 3,
        "infohash": MANIFEST.hex(),
        "size": 1600,
        "cached": 350,
        "peers": 2,
    }


def test_a_package_that_was_never_opened_shows_its_contents_size() -> None:
    record = report.package(version(), {}, None)

    assert (record["size"], record["cached"], record["peers"]) == (7777, 0, 0)


def test_a_listing_is_in_the_order_of_paths() -> None:
    catalog = Catalog(name="alice", versions={path: version(path) for path in ("b", "a")}, aliases={"c": "a"})

    record = report.listing(catalog)

    assert [package["path"] for package in record["packages"]] == ["a", "b"]
    assert record["packages"][0]["revisions"] == [3]
    assert record["aliases"] == {"c": "a"}
