"""Tests of the seeder's tracker over HTTP: who may ask, what it answers, and what of it admins see."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_seed import SETTINGS, publish_bytes, seeding

from contrib.grid import free_port
from torrentfs.cli import app
from torrentfs.cli.stats import _text
from torrentfs.config import SeedSettings, SwarmSettings, TrackerSettings, parse_network
from torrentfs.daemon.seed import Origin, seed
from torrentfs.errors import UsageError
from torrentfs.http import Tracker
from torrentfs.repository import bencode
from torrentfs.repository.metainfo import InfoHash
from torrentfs.repository.workshop import Repository

DEADLINE_S = 10
TRACKING = msgspec.structs.replace(
    SETTINGS, networks=("127.0.0.0/8", "::1"), tracker=TrackerSettings(enabled=True)
)
HASH = InfoHash(bytes(range(32)))
PORT = 6881


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repository", "alice")


def announcement(info_hash: bytes, **fields: str | int) -> str:
    known = {"info_hash": quote_from_bytes(info_hash[:20]), "peer_id": "-XX0000-123456789012", "port": PORT}
    return "/announce?" + "&".join(f"{name}={value}" for name, value in {**known, **fields}.items())


@contextlib.asynccontextmanager
async def asking(origin: Origin, source: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    """A client of *origin*, at the address *source*."""
    assert origin.http is not None
    host = "[::1]" if ":" in source else "127.0.0.1"
    async with httpx.AsyncClient(
        base_url=f"http://{host}:{origin.http[1]}",
        timeout=DEADLINE_S,
        transport=httpx.AsyncHTTPTransport(local_address=source),
    ) as client:
        yield client


async def ask(origin: Origin, path: str, source: str = "127.0.0.1") -> dict[bytes, Any]:
    async with asking(origin, source) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    decoded = bencode.decode(answer.content)
    assert isinstance(decoded, dict)
    return decoded


def end(host: str, port: int = PORT) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host) + port.to_bytes(2)


async def test_nodes_are_told_of_the_seeder_and_of_each_other(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    async with seeding(repository, TRACKING) as origin:
        first = await ask(origin, announcement(ref.info_hash), "127.0.0.2")
        second = await ask(origin, announcement(ref.info_hash), "127.0.0.3")
        own = end(*origin.swarm.listen)

    assert first[b"peers"] == own
    assert second[b"peers"] == own + end("127.0.0.2")
    assert (second[b"complete"], second[b"incomplete"]) == (1, 2)
    assert 0.9 * 900 <= second[b"interval"] <= 1.1 * 900


async def test_packs_and_manifests_of_all_revisions_are_known_and_nothing_else(
    repository: Repository,
) -> None:
    old = publish_bytes(repository, "data/a", 100_000)
    async with seeding(repository, TRACKING) as origin:
        new = await trio.to_thread.run_sync(publish_bytes, repository, "data/a", 200_000)
        await origin.look()
        packs = [
            bytes.fromhex(file.name.split(".")[0]) for file in (repository.public / "packs").glob("*.tar.zst")
        ]
        known = [await ask(origin, announcement(key)) for key in (old.info_hash, new.info_hash, *packs)]
        unknown = await ask(origin, announcement(HASH))

    assert len(packs) == 2
    assert all(answer[b"complete"] == 1 for answer in known)
    assert list(unknown) == [b"failure reason"]


@pytest.mark.warns("cannot seed pack")
async def test_pack_that_is_damaged_here_is_tracked_but_not_claimed(repository: Repository) -> None:
    publish_bytes(repository, "data/a")
    (pack,) = (repository.public / "packs").glob("*.tar.zst")
    pack.write_bytes(b"short")
    async with seeding(repository, TRACKING) as origin:
        answer = await ask(origin, announcement(bytes.fromhex(pack.name.split(".")[0])))

    assert (answer[b"complete"], answer[b"peers"]) == (0, b"")


async def test_who_is_outside_is_refused_and_never_handed_on(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    settings = msgspec.structs.replace(TRACKING, networks=("127.0.0.2/31", "::1"))
    async with seeding(repository, settings) as origin:
        # Neither what it says of itself nor what a proxy might say helps.
        async with asking(origin, "127.0.0.1") as client:
            refused = await client.get(
                announcement(ref.info_hash, ip="127.0.0.2"), headers={"x-forwarded-for": "127.0.0.2"}
            )
        scrape = await ask(origin, "/scrape?info_hash=" + quote_from_bytes(ref.info_hash[:20]), "127.0.0.1")
        inside = await ask(origin, announcement(ref.info_hash), "127.0.0.2")
        figures = (await origin.stats())["tracker"]

    assert b"not of the networks" in refused.content
    assert list(scrape) == [b"failure reason"]
    assert inside[b"peers"] == end(*origin.swarm.listen)
    assert figures["refused"] == {"outside": 2, "unknown": 0, "malformed": 0}
    assert (figures["peers"], figures["addresses"], figures["torrents"]) == (1, 1, 1)


async def test_seeder_on_all_addresses_is_named_by_the_one_that_was_reached(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    # Not port 0: at a wildcard, libtorrent takes another free one for each address.
    port = free_port()
    swarm = SwarmSettings(listen=f"0.0.0.0:{port}")
    async with seeding(
        repository, msgspec.structs.replace(TRACKING, swarm=swarm, http="0.0.0.0:0")
    ) as origin:
        answer = await ask(origin, announcement(ref.info_hash), "127.0.0.2")

    assert answer[b"peers"] == end("127.0.0.1", port)


async def test_seeder_is_named_by_the_number_that_it_advertises(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    for advertise, named in (("192.0.2.1:7", "192.0.2.1"), ("origin.example.org:7", "127.0.0.1")):
        settings = msgspec.structs.replace(TRACKING, advertise=advertise)
        async with seeding(repository, settings) as origin:
            answer = await ask(origin, announcement(ref.info_hash))
            port = 7 if named == "192.0.2.1" else origin.swarm.listen[1]

        assert answer[b"peers"] == end(named, port)


async def test_both_kinds_of_address_are_served_by_one_socket_and_kept_apart(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    settings = msgspec.structs.replace(TRACKING, http="[::]:0")
    async with seeding(repository, settings) as origin:
        # An IPv4 client of an IPv6 socket looks like ::ffff:127.0.0.2.
        four = await ask(origin, announcement(ref.info_hash, port=4), "127.0.0.2")
        six = await ask(origin, announcement(ref.info_hash, port=6), "::1")
        again = await ask(origin, announcement(ref.info_hash, port=66), "::1")

    assert four[b"peers"] == end(*origin.swarm.listen)
    assert (six[b"peers"], six[b"peers6"]) == (b"", b"")
    assert (again[b"peers"], again[b"peers6"]) == (b"", end("::1", 6))


async def test_scrape_counts(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    async with seeding(repository, TRACKING) as origin:
        await ask(origin, announcement(ref.info_hash, left=0, event="completed"))
        await ask(origin, announcement(ref.info_hash, port=7))
        asked = "&".join("info_hash=" + quote_from_bytes(key[:20]) for key in (ref.info_hash, HASH))
        answer = await ask(origin, f"/scrape?{asked}")

    assert answer == {
        b"files": {ref.info_hash[:20]: {b"complete": 2, b"downloaded": 1, b"incomplete": 1}},
    }


async def test_stats_show_the_tracker(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    async with seeding(repository, TRACKING) as origin:
        await ask(origin, announcement(ref.info_hash))
        await ask(origin, announcement(HASH))
        await ask(origin, "/announce?spam")
        await ask(origin, "/scrape?info_hash=" + quote_from_bytes(ref.info_hash[:20]))
        record = await origin.stats()

    assert record["tracker"] == {
        "torrents": 1,
        "peers": 1,
        "addresses": 1,
        "announces": 1,
        "scrapes": 1,
        "refused": {"outside": 0, "unknown": 1, "malformed": 1},
    }
    assert (
        "tracker  1 peers of 1 addresses in 1 torrents, 1 announces; refused: 1 unknown, 1 malformed"
        in _text(record)
    )


async def test_seeder_without_a_tracker_has_no_such_place(repository: Repository) -> None:
    async with seeding(repository) as origin:
        async with asking(origin) as client:
            answer = await client.get("/announce")
        record = await origin.stats()

    assert (answer.status_code, record["tracker"]) == (404, None)
    assert "  tracker  " not in _text(record)


async def test_only_get_is_answered(repository: Repository) -> None:
    async with seeding(repository, TRACKING) as origin, asking(origin) as client:
        statuses = [(await client.request(method, "/announce")).status_code for method in ("POST", "HEAD")]

    assert statuses == [405, 405]


@pytest.mark.parametrize(
    "target",
    [
        b"/announce",
        b"/announce?",
        b"/announce?info_hash=%zz%&port=1",
        b"/announce?" + b"&".join([b"port=1"] * 1000),
        b"/announce?info_hash=" + b"%00" * 20 + b"&port=" + b"9" * 4000,
        b"/announce?\xff\xfe\x80",
        b"/announce?" + b"a" * 15_000,
        b"/scrape",
        b"/scrape?" + b"info_hash=" + b"%00" * 2000,
        b"/scrape?\x00",
        b"/announce/../announce",
        b"//announce",
    ],
)
async def test_hostile_request_is_refused_in_words_of_http_or_ours(
    repository: Repository, target: bytes
) -> None:
    async with seeding(repository, TRACKING) as origin:
        assert origin.http is not None
        with trio.fail_after(DEADLINE_S):
            stream = await trio.open_tcp_stream(*origin.http)
            async with stream:
                await stream.send_all(b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                answer = b"".join([part async for part in stream])
        after = await ask(origin, "/announce?spam")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert (head[:12], body[:20]) == (b"HTTP/1.1 200", b"d14:failure reason" + body[18:20]) or head[
        :10
    ] == b"HTTP/1.1 4"
    assert b"failure reason" in after


@given(st.binary(max_size=200))
def test_any_query_is_answered_in_bencode(query: bytes) -> None:
    tracker = Tracker(TrackerSettings(), [parse_network("127.0.0.0/8")])
    tracker.follow([HASH], [])
    scope = {"path": "/announce", "query_string": query, "client": ("127.0.0.1", 1), "server": None}

    assert isinstance(bencode.decode(tracker._answer(scope)), dict)


@pytest.mark.parametrize("host", [None, "", "localhost", "fe80::1%eth0", "::ffff:10.0.0.1", "10.0.0.1", "::"])
def test_client_without_an_address_that_can_be_handed_on_is_refused(host: str | None) -> None:
    tracker = Tracker(TrackerSettings(), [parse_network("127.0.0.0/8"), parse_network("fe80::/10")])
    tracker.follow([HASH], [])
    query = announcement(HASH).partition("?")[2].encode()
    client = None if host is None else (host, 1)

    answer = tracker._answer({"path": "/announce", "query_string": query, "client": client, "server": None})

    assert b"not of the networks" in answer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"networks": ()}, "--site"),
        ({"http": ""}, "--http"),
        ({"networks": ("10.0.0.1/8",)}, "did you mean 10.0.0.0/8"),
        ({"networks": ("site",)}, "'site' is not a network"),
    ],
)
async def test_tracker_that_could_not_work_is_refused_at_the_start(
    repository: Repository, changes: dict[str, Any], words: str
) -> None:
    settings: SeedSettings = msgspec.structs.replace(TRACKING, **changes)

    with pytest.raises(UsageError, match=words):
        await seed(repository.directory, settings)


@pytest.mark.parametrize("options", [["--tracker", "--http", "127.0.0.1:0"], ["--site", "10.0.0.0/33"]])
def test_command_used_wrongly_says_so_in_a_line(
    repository: Repository,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))
    code = app.run(["seed", str(repository.directory), "--listen", "127.0.0.1:0", *options])

    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_whitelist_has_all_torrents_as_trackers_know_them(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    for length in (100_000, 200_000):
        publish_bytes(repository, "data/a", length)

    assert app.run(["list", str(repository.directory), "--whitelist"]) == 0

    files = [*repository.public.glob("packs/*.torrent"), *repository.public.glob("manifests/*.torrent")]
    assert capsys.readouterr().out.split() == sorted(file.name[:40] for file in files)
    assert len(files) == 4


def test_whitelist_needs_a_repository_and_no_json(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["list", str(tmp_path), "--whitelist"]) == 2
    assert app.run(["list", str(repository.directory), "--whitelist", "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
