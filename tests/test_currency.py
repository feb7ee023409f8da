"""Keeping a mount's catalog current: a start without the repository, newer ones, and their age."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from catalogs import mirror

from torrentfs.config import MountSettings
from torrentfs.daemon.currency import ASIDE_S, Currency, Origin
from torrentfs.errors import ExpiredError, FetchError, FormatError, TrustError
from torrentfs.node import mirrors
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.workshop import Repository

SETTINGS = MountSettings(refresh_interval_s=0.05)
DEADLINE_S = 30


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repo", "alice")


def origin_of(repository: Repository, tmp_path: Path) -> Origin:
    """Return an origin with a copy of the trust file, as on a node."""
    trust = tmp_path / "root.json"
    trust.write_bytes((repository.public / "root.json").read_bytes())
    directory = tmp_path / "cache"
    directory.mkdir(parents=True, exist_ok=True)
    url = repository.public.as_uri()
    return Origin(url, directory, trust, (url,))


async def test_a_newer_catalog_is_shown_and_counts_as_known(repository: Repository, tmp_path: Path) -> None:
    currency = Currency(origin_of(repository, tmp_path), SETTINGS, trio.Lock())
    first = await currency.first()
    shown: list[int] = []

    async with trio.open_nursery() as nursery:

        async def show(catalog: Catalog) -> None:
            shown.append(catalog.version)
            nursery.cancel_scope.cancel()

        nursery.cancel_scope.deadline = trio.current_time() + DEADLINE_S
        nursery.start_soon(currency.keep, show)
        await trio.to_thread.run_sync(repository.refresh)

    assert shown == [first.version + 1]


async def test_a_catalog_that_could_not_be_shown_is_shown_at_the_next_look(
    repository: Repository, tmp_path: Path
) -> None:
    currency = Currency(origin_of(repository, tmp_path), SETTINGS, trio.Lock())
    await currency.first()
    await trio.to_thread.run_sync(repository.refresh)
    shown: list[int] = []

    async def refuse(catalog: Catalog) -> None:
        raise FormatError("it cannot be shown")

    async def show(catalog: Catalog) -> None:
        shown.append(catalog.version)

    with pytest.raises(FormatError):
        await currency.check(refuse)
    assert await currency.check(show)

    assert shown == [2]


async def test_a_catalog_that_is_current_is_not_shown_again(repository: Repository, tmp_path: Path) -> None:
    currency = Currency(origin_of(repository, tmp_path), SETTINGS, trio.Lock())
    await currency.first()

    async def show(catalog: Catalog) -> None:
        raise AssertionError

    assert not await currency.check(show)
    assert currency.age_s < DEADLINE_S


async def test_one_http_client_serves_all_checks(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = mirrors._http_client

    def counted(base: str, requests_max: int, timeout_s: float):
        made.append(base)
        return make(base, requests_max, timeout_s)

    async def show(catalog: Catalog) -> None:
        raise AssertionError

    monkeypatch.setattr(mirrors, "_http_client", counted)
    origin = origin_of(repository, tmp_path)
    with mirror(repository.public) as url:
        currency = Currency(replace(origin, mirrors=(url,)), SETTINGS, trio.Lock())
        await currency.first()
        with trio.move_on_after(3 * SETTINGS.refresh_interval_s):
            await currency.keep(show)

        with pytest.raises(RuntimeError, match="closed"):
            await currency.check(show)

    assert made == [f"{url}/"]


@pytest.mark.warns("starting with the last known catalog")
async def test_a_start_without_the_repository_takes_the_last_known_one(
    repository: Repository, tmp_path: Path
) -> None:
    origin = origin_of(repository, tmp_path)
    known = await Currency(origin, SETTINGS, trio.Lock()).first()
    repository.public.rename(tmp_path / "away")

    currency = Currency(origin, SETTINGS, trio.Lock())
    assert await currency.first() == known
    assert currency.doubt.startswith(f"starting with the last known catalog, version {known.version}: ")


@pytest.mark.warns("the catalog stays at version 1")
async def test_an_outage_is_logged_once(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    currency = Currency(origin_of(repository, tmp_path), SETTINGS, trio.Lock())
    await currency.first()
    repository.public.rename(tmp_path / "away")

    async def show(catalog: Catalog) -> None:
        raise AssertionError

    with trio.move_on_after(0.5):
        await currency.keep(show)

    assert sum("the catalog stays" in record.getMessage() for record in caplog.records) == 1


async def test_without_any_catalog_a_start_fails(repository: Repository, tmp_path: Path) -> None:
    origin = origin_of(repository, tmp_path)
    repository.public.rename(tmp_path / "away")

    with pytest.raises(FetchError):
        await Currency(origin, SETTINGS, trio.Lock()).first()


async def test_another_repositorys_root_is_named(repository: Repository, tmp_path: Path) -> None:
    other = Repository.create(tmp_path / "other", "alice")
    origin = origin_of(other, tmp_path)
    mixed = replace(origin, mirrors=(repository.public.as_uri(),))

    with pytest.raises(TrustError, match=r"root\.json"):
        await Currency(mixed, SETTINGS, trio.Lock()).first()


async def test_an_expired_repository_is_not_taken_for_a_wrong_root(tmp_path: Path) -> None:
    then = datetime.now(UTC).replace(microsecond=0) - timedelta(days=31)
    sleeping = Repository.create(tmp_path / "repo", "alice", clock=lambda: then)
    currency = Currency(origin_of(sleeping, tmp_path), SETTINGS, trio.Lock())

    with pytest.raises(ExpiredError, match=r"expired.*publisher must run `torrentfs repo refresh`") as caught:
        await currency.first()

    assert "root.json" not in str(caught.value)


async def test_what_another_mount_of_the_repository_fetched_is_shown_too(
    repository: Repository, tmp_path: Path
) -> None:
    origin, lock = origin_of(repository, tmp_path), trio.Lock()
    currencies = [Currency(origin, SETTINGS, lock) for _ in range(2)]
    shown: list[int] = []

    async def show(catalog: Catalog) -> None:
        shown.append(catalog.version)

    for currency in currencies:
        await currency.first()
    await trio.to_thread.run_sync(repository.refresh)

    changed = [await currency.check(show) for currency in currencies * 2]

    assert changed == [True, True, False, False]
    assert shown == [2, 2]


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a mirror that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def show_any(catalog: Catalog) -> None:
    """Have no kernel that must know."""


class TestSeveralMirrors:
    @pytest.mark.parametrize("bad", ["away", "other", "silent"])
    async def test_one_that_is_of_no_use_is_passed_over(
        self, repository: Repository, tmp_path: Path, silent: str, bad: str
    ) -> None:
        other = Repository.create(tmp_path / "other", "alice")
        urls = {"away": (tmp_path / "away").as_uri(), "other": other.public.as_uri(), "silent": silent}
        origin = origin_of(repository, tmp_path)
        settings = MountSettings(refresh_deadline_s=5.0)
        currency = Currency(replace(origin, mirrors=(urls[bad], origin.url)), settings, trio.Lock())

        assert (await currency.first()).version == 1
        await trio.to_thread.run_sync(repository.refresh)
        assert await currency.check(show_any)
        assert currency.catalog.version == 2

    async def test_one_that_was_left_behind_is_passed_over(
        self, repository: Repository, tmp_path: Path
    ) -> None:
        behind = shutil.copytree(repository.public, tmp_path / "behind").as_uri()
        origin = origin_of(repository, tmp_path)
        await trio.to_thread.run_sync(repository.refresh)
        await Currency(origin, SETTINGS, trio.Lock()).first()
        await trio.to_thread.run_sync(repository.refresh)
        currency = Currency(replace(origin, mirrors=(behind, origin.url)), SETTINGS, trio.Lock())

        assert (await currency.first()).version == 3
        assert not currency.doubt

    @pytest.mark.parametrize("aside_s", [0.0, ASIDE_S])
    async def test_one_that_failed_comes_last_for_a_while(
        self, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside_s: float
    ) -> None:
        monkeypatch.setattr("torrentfs.daemon.currency.ASIDE_S", aside_s)
        away = shutil.copytree(repository.public, tmp_path / "away")
        origin = origin_of(repository, tmp_path)
        copy = tmp_path / "copy"
        currency = Currency(replace(origin, mirrors=(copy.as_uri(), origin.url)), SETTINGS, trio.Lock())
        await currency.first()
        # Both answer now; who is asked shows by what the copy lacks.
        away.rename(copy)
        await trio.to_thread.run_sync(repository.refresh)

        assert await currency.check(show_any) == bool(aside_s)

    async def test_what_cannot_be_trusted_is_what_is_said(
        self, repository: Repository, tmp_path: Path
    ) -> None:
        other = origin_of(Repository.create(tmp_path / "other", "alice"), tmp_path)
        away = (tmp_path / "away").as_uri()
        mixed = replace(other, mirrors=(away, repository.public.as_uri()))

        with pytest.raises(TrustError, match=r"root\.json"):
            await Currency(mixed, SETTINGS, trio.Lock()).first()
