"""Tests of the origin: it seeds what is published, while it is published, and serves public/."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
from test_swarm import Recorder, running

from torrentfs.cli import app
from torrentfs.config import SeedSettings, SwarmSettings, format_address
from torrentfs.daemon import control_client, upkeep
from torrentfs.daemon import seed as daemon_seed
from torrentfs.daemon.seed import Origin, seed
from torrentfs.errors import ListenError, RepositoryError
from torrentfs.repository import trust
from torrentfs.repository.metainfo import PieceIndex, TorrentRef, parse
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository

DEADLINE_S = 10
SETTINGS = SeedSettings(swarm=SwarmSettings(listen="127.0.0.1:0"), http="127.0.0.1:0", poll_interval_s=0.05)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repository", "alice")


def publish_bytes(repository: Repository, path: str, length: int = 600_000) -> TorrentRef:
    """Publish a file of random bytes; return its manifest."""
    source = repository.directory.parent / "source"
    source.write_bytes(random.Random(path).randbytes(length))
    publish(repository, source, path)
    return repository.catalog().versions[path].current.ref


@contextlib.asynccontextmanager
async def seeding(repository: Repository, settings: SeedSettings = SETTINGS) -> AsyncIterator[Origin]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(
            lambda task_status: seed(repository.directory, settings, task_status=task_status)
        )
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 (what is waited for happens on disk)
            await trio.sleep(0.02)


async def fetch(origin: Origin, repository: Repository, ref: TorrentRef, file: Path) -> None:
    """Get all of *ref* from the origin as a peer does."""
    metainfo = parse((repository.public / ref.kind.torrent_path(ref.info_hash)).read_bytes(), ref)
    recorder: Recorder
    async with running() as (node, recorder):
        count = metainfo.piece_count
        node.add(metainfo, file, [False] * count, [origin.swarm.listen])
        node.want(ref.info_hash, [PieceIndex(piece) for piece in range(count)], urgent=True)
        await recorder.until(lambda seen: len(seen.arrived) == count)


async def test_manifests_and_packs_are_seeded(repository: Repository, tmp_path: Path) -> None:
    ref = publish_bytes(repository, "data/a")
    async with seeding(repository) as origin:
        await fetch(origin, repository, ref, tmp_path / "manifest")
        figures = await origin.stats()

    manifest = repository.public / ref.kind.url_path(ref.info_hash)
    assert (tmp_path / "manifest").read_bytes() == manifest.read_bytes()
    assert figures["torrents"] == 2
    assert figures["bytes"]["uploaded"] == ref.length
    assert figures["repository"] == "alice"
    assert figures["errors"] == 0


async def test_new_revision_is_noticed(repository: Repository, tmp_path: Path) -> None:
    async with seeding(repository) as origin:
        ref = await trio.to_thread.run_sync(publish_bytes, repository, "data/b")

        async def noticed() -> bool:
            return (await origin.stats())["torrents"] == 2

        await until(noticed)
        await fetch(origin, repository, ref, tmp_path / "manifest")

        assert origin.catalog.version == repository.catalog().version


async def test_public_is_served_and_private_is_not(repository: Repository) -> None:
    ref = publish_bytes(repository, "data/a")
    async with seeding(repository) as origin:
        assert origin.http is not None
        async with httpx.AsyncClient(base_url=f"http://{format_address(*origin.http)}") as client:
            timestamp = await client.get("/metadata/timestamp.json")
            manifest = await client.get(
                "/" + ref.kind.url_path(ref.info_hash), headers={"range": "bytes=0-7"}
            )
            key = await client.get("/../private/timestamp.pem")

    assert timestamp.content == (repository.public / "metadata" / "timestamp.json").read_bytes()
    assert (manifest.status_code, len(manifest.content)) == (206, 8)
    assert key.status_code == 404


async def test_catalog_comes_to_name_the_origin_once(repository: Repository) -> None:
    settings = msgspec.structs.replace(SETTINGS, advertise="origin.example.org:6881")
    async with seeding(repository, settings):
        first = repository.catalog()
    async with seeding(repository, settings):
        second = repository.catalog()

    assert first.seeders == ("origin.example.org:6881",)
    assert second.version == first.version


async def test_listening_address_is_what_the_catalog_names_by_default(repository: Repository) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = format_address(*probe.getsockname())
    async with seeding(repository, msgspec.structs.replace(SETTINGS, swarm=SwarmSettings(listen=listen))):
        assert repository.catalog().seeders == (listen,)


async def test_port_that_was_free_by_chance_is_advertised_only_on_demand(repository: Repository) -> None:
    async with seeding(repository):
        by_default = repository.catalog().seeders
    async with seeding(repository, msgspec.structs.replace(SETTINGS, advertise="127.0.0.1:0")) as origin:
        on_demand = repository.catalog().seeders

    assert by_default == ()
    assert on_demand == (format_address(*origin.swarm.listen),)


@pytest.mark.warns("is in use by process")
async def test_publisher_at_work_delays_the_address_and_nothing_else(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOCK_WAIT_S", 0.0)
    monkeypatch.setattr(daemon_seed, "COMMIT_PAUSE_S", 0.05)
    publish_bytes(repository, "data/a")
    settings = msgspec.structs.replace(SETTINGS, advertise="origin.example.org:6881")

    async def is_named() -> bool:
        return repository.catalog().seeders == ("origin.example.org:6881",)

    async with trio.open_nursery() as nursery:
        with repository.lock():
            origin = await nursery.start(
                lambda task_status: seed(repository.directory, settings, task_status=task_status)
            )
            figures = await origin.stats()
            assert not await is_named()
        await until(is_named)
        nursery.cancel_scope.cancel()

    assert figures["torrents"] == 2


async def test_idle_origin_signs_anew_once_a_day(tmp_path: Path) -> None:
    yesterday = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=25)
    made = Repository.create(tmp_path / "repository", "alice", clock=lambda: yesterday)

    async with seeding(made) as origin:
        renewed = origin.catalog
        await origin.commit_due()

    assert renewed.version == 2
    assert renewed.expires > (yesterday + timedelta(days=1) + trust.ONLINE_LIFE).timestamp()
    assert made.catalog() == renewed


def test_day_is_what_is_left_of_the_life_of_signatures() -> None:
    assert trust.ONLINE_LIFE.total_seconds() - upkeep.REFRESH_LEFT_S == 86_400


@pytest.mark.warns("timestamp.json")
async def test_repository_that_cannot_be_read_is_refused_at_the_start_and_borne_later(
    repository: Repository, tmp_path: Path
) -> None:
    timestamp = repository.public / "metadata" / "timestamp.json"
    async with seeding(repository) as origin:
        timestamp.rename(tmp_path / "timestamp.json")
        await trio.sleep(4 * SETTINGS.poll_interval_s)
        (tmp_path / "timestamp.json").rename(timestamp)
        await trio.to_thread.run_sync(publish_bytes, repository, "data/a")

        async def is_noticed() -> bool:
            return "data/a" in origin.catalog.versions

        await until(is_noticed)
    for file in (repository.public / "targets").rglob("*.namespace"):
        file.write_bytes(b"{}")

    with pytest.RaisesGroup(RepositoryError, flatten_subgroups=True, allow_unwrapped=True):
        await seed(repository.directory, SETTINGS)


async def test_wildcard_address_is_not_advertised(repository: Repository) -> None:
    swarm = SwarmSettings(listen="0.0.0.0:0")
    async with seeding(repository, msgspec.structs.replace(SETTINGS, swarm=swarm)):
        assert repository.catalog().seeders == ()


async def test_origin_without_keys_seeds_all_the_same(repository: Repository, tmp_path: Path) -> None:
    ref = publish_bytes(repository, "data/a")
    (repository.private / "timestamp.pem").unlink()

    async with seeding(repository) as origin:
        await fetch(origin, repository, ref, tmp_path / "manifest")

    assert repository.catalog().seeders == ()


@pytest.mark.warns("cannot seed pack")
async def test_damaged_metainfo_is_left_out_and_counted(repository: Repository) -> None:
    publish_bytes(repository, "data/a")
    (torrent,) = (repository.public / "packs").glob("*.torrent")
    torrent.write_bytes(b"d4:spam4:eggse")

    async with seeding(repository) as origin:
        figures = await origin.stats()

    assert (figures["torrents"], figures["errors"]) == (1, 1)


@pytest.mark.warns("cannot seed pack")
async def test_pack_of_another_length_is_left_out_and_counted(repository: Repository) -> None:
    publish_bytes(repository, "data/a")
    (pack,) = (repository.public / "packs").glob("*.tar.zst")
    with pack.open("ab") as file:
        file.write(b"more")

    async with seeding(repository) as origin:
        figures = await origin.stats()

    assert (figures["torrents"], figures["errors"]) == (1, 1)


async def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError):
        await seed(tmp_path, SETTINGS)


async def test_taken_web_port_is_refused(repository: Repository) -> None:
    async with seeding(repository) as origin:
        assert origin.http is not None
        settings = msgspec.structs.replace(SETTINGS, http=format_address(*origin.http))
        with pytest.RaisesGroup(ListenError, flatten_subgroups=True):
            await seed(repository.directory, settings)


async def test_an_origin_that_cannot_start_puts_no_address_into_the_catalog(repository: Repository) -> None:
    before = repository.catalog()
    async with seeding(repository) as origin:
        assert origin.http is not None
        settings = msgspec.structs.replace(
            SETTINGS, http=format_address(*origin.http), advertise="origin.example.org:6881"
        )
        with pytest.RaisesGroup(ListenError, flatten_subgroups=True):
            await seed(repository.directory, settings)

    assert repository.catalog() == before


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control sockets of the test's own."""
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))


@contextlib.contextmanager
def command(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Run `torrentfs seed` in a process of its own, and end it."""
    with subprocess.Popen(
        [sys.executable, "-m", "torrentfs", "seed", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.usefixtures("runtime")
def test_origin_answers_stats_and_is_the_only_one(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = publish_bytes(repository, "data/a")
    options = [repository.directory, "--listen", "127.0.0.1:0"]
    with command(*options) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("seeding alice")
        figures = control_client.ask(repository.directory, "stats")
        assert app.run(["stats"]) == 0
        shown = capsys.readouterr().out
        with command(*options) as second:
            _, refusal = second.communicate(timeout=DEADLINE_S)

    assert (figures["repository"], figures["pid"], figures["torrents"]) == ("alice", first.pid, 2)
    assert figures["catalog"]["version"] == repository.catalog().version
    assert figures["bytes"]["seeded"] > ref.length
    assert (figures["bytes"]["uploaded"], figures["peers"], figures["mountpoint"]) == (0, 0, None)
    assert f"origin of alice, process {first.pid}" in shown
    assert second.returncode == 1
    assert f"is seeded already, by process {first.pid}" in refusal


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signal_ends_it_cleanly(repository: Repository, number: signal.Signals) -> None:
    publish_bytes(repository, "data/a")
    program = (
        "import sys; from pathlib import Path; import msgspec\n"
        "from torrentfs.config import SeedSettings\n"
        "from torrentfs.daemon.seed import run\n"
        "settings = msgspec.json.decode(sys.argv[2], type=SeedSettings)\n"
        "run(Path(sys.argv[1]), settings, lambda origin: print(*origin.swarm.listen, flush=True))\n"
    )
    command = [sys.executable, "-c", program, str(repository.directory), msgspec.json.encode(SETTINGS)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    ) as origin:
        assert origin.stdout is not None
        assert origin.stdout.readline().startswith(b"127.0.0.1 ")

        origin.send_signal(number)
        _, said = origin.communicate(timeout=DEADLINE_S)

    assert origin.returncode == 0
    assert b"Traceback" not in said
