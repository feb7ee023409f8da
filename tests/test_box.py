"""Pull-through seeders: three tiers of them, what passes once, and what goes on without the tier above."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
import trio
from daemons import await_true, command, torrentfs
from test_seed import publish_bytes, seeding

from contrib.grid import free_port, process
from torrentfs.config import BoxSettings, MountSettings, TrackerSettings, format_address
from torrentfs.daemon.box import Box, pull
from torrentfs.daemon.currency import Currency
from torrentfs.daemon.currency import Origin as Source
from torrentfs.daemon.lifetime import first_of
from torrentfs.daemon.request import Request, made
from torrentfs.daemon.seed import Origin
from torrentfs.daemon.shelf import Shelf
from torrentfs.errors import FetchError
from torrentfs.repository.metainfo import PIECE_LENGTH, InfoHash, Kind, TorrentRef
from torrentfs.repository.update import update
from torrentfs.repository.workshop import Repository

DEADLINE_S = 30
LENGTH = 5 * PIECE_LENGTH + 1234


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made_one = Repository.create(tmp_path / "repository", "alice")
    publish_bytes(made_one, "data/a", LENGTH)
    return made_one


def asked(
    directory: Path, repository: Repository, url: str, method: str = "torrent", http: str = "127.0.0.1:0"
) -> Request:
    """Return what a seeder with its cache in *directory* is asked with; its upstream is at *url*."""
    file = directory.with_suffix(".toml")
    file.write_text(
        f'repository = "{url}"\n'
        f'trust = "{repository.public / "root.json"}"\n'
        f'cache = "{directory}"\n'
        "[node]\nmirror_timeout_s = 2.0\n"
        '[node.swarm]\nlisten = "127.0.0.1:0"\n'
        f'[node.site]\nnetworks = ["127.0.0.0/8"]\ninstall_method = "{method}"\nlocal_discovery = false\n'
        f'[seed]\nhttp = "{http}"\n'
    )
    return made(directory, file, {})


@asynccontextmanager
async def pulling(request: Request) -> AsyncIterator[Box]:
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(pull, request)
            nursery.cancel_scope.cancel()


def url_of(http: tuple[str, int] | None) -> str:
    assert http is not None
    return f"http://{format_address(*http)}"


def client(box: Box) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url_of(box.http), timeout=DEADLINE_S)


def pack(repository: Repository) -> tuple[TorrentRef, bytes]:
    """Return the repository's only pack, and what is in it."""
    [file] = (repository.public / "packs").glob("*.tar.zst")
    info_hash = InfoHash(bytes.fromhex(file.name.partition(".")[0]))
    data = file.read_bytes()
    return TorrentRef(info_hash, len(data), Kind.PACK), data


@dataclass
class Tiers:
    """An origin, a region and a site; the two latter know only who is above them."""

    origin: Origin
    region: Box
    site: Box
    top: trio.CancelScope
    """Ends the origin."""


@asynccontextmanager
async def tiers(repository: Repository, directory: Path, method: str = "torrent") -> AsyncIterator[Tiers]:
    async with trio.open_nursery() as nursery:
        scopes: list[trio.CancelScope] = []

        async def be_origin(*, task_status: trio.TaskStatus[Origin]) -> None:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                async with seeding(repository) as origin:
                    task_status.started(origin)
                    await trio.sleep_forever()

        origin = await nursery.start(be_origin)
        above = asked(directory / "region", repository, url_of(origin.http), method)
        async with (
            pulling(above) as region,
            pulling(asked(directory / "site", repository, url_of(region.http), method)) as site,
        ):
            yield Tiers(origin, region, site, scopes[0])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["torrent", "http"])
async def test_what_passes_three_tiers_leaves_the_origin_once(
    repository: Repository, tmp_path: Path, method: str
) -> None:
    ref, data = pack(repository)
    start, length = 100, 3 * PIECE_LENGTH  # of four pieces
    got: list[bytes] = []

    async def ask(built: Tiers) -> None:
        async with client(built.site) as asking:
            path = ref.kind.url_path(ref.info_hash)
            answer = await asking.get(path, headers={"range": f"bytes={start}-{start + length - 1}"})
            assert answer.status_code == 206
            got.append(answer.content)

    async with tiers(repository, tmp_path, method) as built:
        before = built.origin.files.bytes_sent
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask, built)
        left = built.origin.files.bytes_sent - before
        figures = await built.site.stats()

    assert got == 8 * [data[start : start + length]]
    torrent = (repository.public / ref.kind.torrent_path(ref.info_hash)).stat().st_size
    assert left == 4 * PIECE_LENGTH + torrent
    assert figures["bytes"]["from_mirrors"] == 4 * PIECE_LENGTH
    assert figures["bytes"]["cached"] == 4 * PIECE_LENGTH
    assert figures["sources"]["redundant"] == 0


async def test_public_looks_alike_on_every_tier_and_stays_when_the_origin_goes(
    repository: Repository, tmp_path: Path
) -> None:
    files = {
        str(file.relative_to(repository.public)): file.read_bytes()
        for file in repository.public.rglob("*")
        if file.is_file() and file.name != "root.json"
    }
    # Of metadata that was replaced nobody asks.
    signed = files["metadata/2.default.json"].decode()
    for name in [*files]:
        is_target_of_old = name.startswith("targets/") and Path(name).name.partition(".")[0] not in signed
        if is_target_of_old or name in ("metadata/1.snapshot.json", "metadata/1.default.json"):
            del files[name]
    async with tiers(repository, tmp_path) as built, client(built.site) as asking:
        for _ in ("fetched", "kept"):
            for name, data in files.items():
                answer = await asking.get(name)
                # The page for people each tier makes itself, of what it has verified.
                is_same = answer.content == data or (
                    name == "index.html" and b"<h1>alice</h1>" in answer.content
                )
                assert (answer.status_code, is_same) == (200, True), name
            built.top.cancel()


async def test_what_nobody_has_is_not_found_and_what_cannot_be_asked_for_is_said(
    repository: Repository, tmp_path: Path
) -> None:
    ref, _ = pack(repository)
    unknown = f"packs/{'ab' * 32}"
    async with tiers(repository, tmp_path, "http") as built, client(built.site) as asking:
        for path in (
            f"{unknown}.torrent",
            f"{unknown}.tar.zst",
            f"{unknown}.manifest",
            f"manifests/{ref.info_hash.hex()}.manifest",
            f"manifests/{ref.info_hash.hex()}.torrent",
            f"packs/{ref.info_hash.hex()[:-1]}.torrent",
        ):
            assert (await asking.get(path)).status_code == 404, path
        answer = await asking.post(f"{unknown}.torrent")
        assert answer.status_code == 405

        built.top.cancel()
        for path in (f"packs/{'cd' * 32}.torrent", ref.kind.torrent_path(ref.info_hash)):
            answer = await asking.get(path)
            # The site cannot tell why the region has it not.
            assert answer.status_code == 504, path
            assert url_of(built.region.http) in answer.text


async def test_a_client_that_goes_leaves_nothing_behind(repository: Repository, tmp_path: Path) -> None:
    ref, _ = pack(repository)
    metainfo = repository.public / ref.kind.torrent_path(ref.info_hash)
    async with tiers(repository, tmp_path, "http") as built:
        built.top.cancel()
        shutil.copy(metainfo, tmp_path / "site" / "metainfo")
        with trio.move_on_after(0.3):
            async with client(built.site) as asking:
                await asking.get(ref.kind.url_path(ref.info_hash))
        with trio.fail_after(DEADLINE_S):
            while (await built.site._node.stats()).waiting:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_new_revision_comes_down_the_tiers(repository: Repository, tmp_path: Path) -> None:
    async with tiers(repository, tmp_path) as built, client(built.site) as asking:
        old = sorted((repository.public / "metadata").glob("*.snapshot.json"))[-1].name
        await trio.to_thread.run_sync(publish_bytes, repository, "data/b")
        for box in (built.region, built.site):
            assert (await box.refresh())["changed"]

        timestamp = await asking.get("metadata/timestamp.json")
        still = await asking.get(f"metadata/{old}")
        currency = Currency(
            catalog_of(tmp_path / "node", repository, url_of(built.site.http)), MountSettings(), trio.Lock()
        )
        catalog = await currency.first()

    assert timestamp.content == (repository.public / "metadata" / "timestamp.json").read_bytes()
    assert still.status_code == 200, "somebody may be reading what it belongs to"
    assert sorted(catalog.versions) == ["data/a", "data/b"]


def catalog_of(directory: Path, repository: Repository, url: str) -> Source:
    directory.mkdir()
    return Source(url, directory, repository.public / "root.json", (url,))


@pytest.mark.warns("starting with the last known catalog")
async def test_it_starts_without_its_upstream_and_serves_what_it_has(
    repository: Repository, tmp_path: Path
) -> None:
    ref, data = pack(repository)
    async with tiers(repository, tmp_path) as built, client(built.site) as asking:
        await asking.get(ref.kind.url_path(ref.info_hash))
        timestamp = (await asking.get("metadata/timestamp.json")).content
    gone = f"http://127.0.0.1:{free_port()}"

    async with pulling(asked(tmp_path / "site", repository, gone)) as box, client(box) as asking:
        answer = await asking.get(ref.kind.url_path(ref.info_hash))
        assert answer.content == data
        assert (await asking.get("metadata/timestamp.json")).content == timestamp


async def test_without_an_upstream_the_first_start_fails(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with pulling(asked(tmp_path / "site", repository, f"http://127.0.0.1:{free_port()}")):
            pass

    assert isinstance(first_of(raised.value), FetchError)


class TestTracker:
    async def test_it_knows_what_was_asked_for(self, repository: Repository, tmp_path: Path) -> None:
        ref, _ = pack(repository)
        async with seeding(repository) as origin:
            request = asked(tmp_path / "site", repository, url_of(origin.http))
            configuration = msgspec.structs.replace(
                request.configuration, seed=BoxSettings("127.0.0.1:0", TrackerSettings(enabled=True))
            )
            async with (
                pulling(msgspec.structs.replace(request, configuration=configuration)) as box,
                client(box) as asking,
            ):
                announce = (
                    f"/announce?info_hash={quote(ref.info_hash[:20])}&peer_id={'x' * 20}&port=6881"
                    "&uploaded=0&downloaded=0&left=1&compact=1"
                )
                before = await asking.get(announce)
                await asking.get(ref.kind.torrent_path(ref.info_hash))
                after = await asking.get(announce)
                await trio.to_thread.run_sync(publish_bytes, repository, "data/b")
                await box.refresh()
                later = await asking.get(announce)

        assert b"failure reason" in before.content
        seeder = bytes([127, 0, 0, 1]) + box.listen[1].to_bytes(2)
        for answer in (after, later):
            assert seeder in answer.content


class TestShelf:
    @pytest.fixture
    def directory(self, repository: Repository, tmp_path: Path) -> Path:
        """Where a node keeps what it has verified of the repository."""
        kept = tmp_path / "kept"
        kept.mkdir()
        update(repository.public.as_uri(), kept, repository.public / "root.json")
        return kept

    def shown(self, directory: Path) -> set[str]:
        public = directory / "public"
        return {str(path.relative_to(public)) for path in public.rglob("*") if path.is_file()}

    def test_half_an_update_is_not_shown(self, repository: Repository, directory: Path) -> None:
        Shelf(directory).fill()
        before = self.shown(directory)
        timestamp = (directory / "public/metadata/timestamp.json").read_bytes()
        repository.refresh()
        # What the client replaces first.
        (directory / "metadata/timestamp.json").unlink()
        shutil.copy(repository.public / "metadata/timestamp.json", directory / "metadata/timestamp.json")

        Shelf(directory).fill()

        assert self.shown(directory) == before
        assert (directory / "public/metadata/timestamp.json").read_bytes() == timestamp

    def test_what_was_shown_before_stays_for_one_time(self, repository: Repository, directory: Path) -> None:
        shelf = Shelf(directory)
        shelf.fill()
        snapshots = []
        for _ in range(3):
            snapshots.append({name for name in self.shown(directory) if "snapshot" in name})
            repository.refresh()
            update(repository.public.as_uri(), directory, repository.public / "root.json")
            shelf.fill()

        assert [len(names) for names in snapshots] == [1, 2, 2]

    @pytest.mark.parametrize(
        "path", ["../../../evil", "/etc/evil", "a//b", ".hidden/a", "a/../b", "a\0b", "", "a\nb"]
    )
    def test_only_names_that_stay_below_it_are_shown(self, directory: Path, path: str) -> None:
        shelf = Shelf(directory)
        shelf.fill()
        before = self.shown(directory)
        [kept] = list((directory / "targets").glob("*"))[:1]
        role = directory / "metadata" / "default.json"
        signed = json.loads(role.read_bytes())
        signed["signed"]["targets"][path] = {"length": 1, "hashes": {"sha256": kept.name}}
        role.unlink()
        role.write_bytes(json.dumps(signed).encode())
        outside = sorted(directory.parent.rglob("*"))

        shelf.fill()

        assert self.shown(directory) == before
        assert sorted(directory.parent.rglob("*")) == outside


class TestCommandLine:
    @pytest.fixture
    def running(
        self, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Path]:
        """The settings of a seeder that runs."""
        monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))
        (tmp_path / "run").mkdir(mode=0o700)
        asked(tmp_path / "site", repository, repository.public.as_uri())
        file, log = tmp_path / "site.toml", tmp_path / "log"
        with process(torrentfs("seed", "--config", file), log):
            await_true(lambda: "seeding what is asked for of alice: peers at 127.0.0.1:" in log.read_text())
            yield file

    def test_it_tells_what_it_does(self, running: Path, repository: Repository) -> None:
        record = json.loads(command("stats", running.with_suffix(""), "--json").stdout)
        text = command("stats").stdout

        assert record["upstream"] == repository.public.as_uri()
        assert record["bytes"]["served"] == 0
        assert f"{running.with_suffix('')}: seeder of alice from file:///" in text

    def test_its_cache_takes_orders(self, running: Path) -> None:
        place = running.with_suffix("")
        before = json.loads(command("cache", "ls", place, "--json").stdout)
        command("cache", "prefetch", place, "*", "--wait")
        command("cache", "pin", place, "*")

        after = json.loads(command("cache", "ls", place, "--json").stdout)

        assert [record["path"] for record in after] == [record["path"] for record in before] != []
        assert not any(record["complete"] for record in before)
        assert all(record["complete"] and record["pinned"] for record in after)

    def test_its_cache_is_its_own(self, running: Path, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        for words in (
            ("mount", tmp_path / "mnt", "--config", running),
            ("seed", "--config", running),
        ):
            refused = command(*words, check=False)
            assert refused.returncode == 1
            assert refused.stderr.count("\n") == 1
            assert f"the cache {running.with_suffix('')} is " in refused.stderr

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            ([], "name a repository to seed, or --config FILE"),
            (["/srv/x", "--config", "x.toml"], "name a repository to seed, or --config FILE"),
            (["--config", "x.toml", "--tracker"], "--tracker cannot go with --config"),
            (
                ["--config", "x.toml", "--http", "[::]:1", "--site", "10.0.0.0/8"],
                "--http, --site cannot go",
            ),
            (["--config", "/nowhere/x.toml"], "/nowhere/x.toml: No such file"),
        ],
    )
    def test_wrong_words_are_one_clear_line(self, words: list[str], reason: str) -> None:
        refused = command("seed", *words, check=False)

        assert refused.returncode == 2
        assert reason in refused.stderr and refused.stderr.count("\n") == 1

    def test_a_file_without_a_cache_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "x.toml"
        file.write_text('repository = "http://127.0.0.1:1"\n')

        refused = command("seed", "--config", file, check=False)

        assert refused.returncode == 2
        assert refused.stderr == f"torrentfs: {file}: cache: say which directory is to hold what is seeded\n"
