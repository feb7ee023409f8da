import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from catalogs import Handler, mirror, publish

from torrentfs.daemon.refresh import last_known, refresh, unchanged
from torrentfs.errors import CacheError, DeadlineError, FetchError, TrustError
from torrentfs.node.mirrors import Mirror
from torrentfs.repository.workshop import Repository

DEADLINE_S = 60.0


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create(tmp_path / "repo", "alice")
    publish(made, "ROOT/v6")
    return made


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return tmp_path / "node"


async def is_unchanged(url: str, directory: Path) -> bool:
    mirror = Mirror(url, requests_max=1, timeout_s=10)
    try:
        return await unchanged(mirror, directory)
    finally:
        await mirror.close()


async def test_refresh_returns_and_keeps_the_verified_catalog(repository: Repository, node: Path) -> None:
    assert last_known(node) is None

    with mirror(repository.public) as url:
        catalog = await refresh(url, node, repository.public / "root.json", DEADLINE_S)

    assert catalog == last_known(node) == repository.catalog()


async def test_with_the_network_away_the_last_verified_catalog_serves(
    repository: Repository, node: Path
) -> None:
    root = repository.public / "root.json"
    known = await refresh(repository.public.as_uri(), node, root, DEADLINE_S)

    with pytest.raises(FetchError, match="refused"):
        await refresh("http://127.0.0.1:1", node, root, DEADLINE_S)
    with pytest.raises(FetchError):
        await is_unchanged("http://127.0.0.1:1", node)

    assert last_known(node) == known


async def test_reason_of_a_failure_comes_from_the_child(
    repository: Repository, node: Path, tmp_path: Path
) -> None:
    url = repository.public.as_uri()
    other = Repository.create(tmp_path / "other", "alice")
    (tmp_path / "file").touch()

    with pytest.raises(TrustError, match="signed by 0/1"):
        await refresh(url, node, other.public / "root.json", DEADLINE_S)
    with pytest.raises(TrustError, match="nowhere"):
        await refresh(url, node, tmp_path / "nowhere", DEADLINE_S)
    with pytest.raises(CacheError):
        await refresh(url, tmp_path / "file", repository.public / "root.json", DEADLINE_S)


async def test_stalling_mirror_costs_no_more_than_the_deadline(repository: Repository, node: Path) -> None:
    over = threading.Event()

    def stall(_handler: Handler) -> None:
        over.wait(DEADLINE_S)

    with mirror(repository.public, {"/metadata/timestamp.json": stall}) as url:
        with pytest.raises(DeadlineError):
            await refresh(url, node, repository.public / "root.json", 0.8)
        over.set()

    assert not (node / "catalog").exists()


async def test_unchanged_tells_whether_a_refresh_would_bring_anything(
    repository: Repository, node: Path
) -> None:
    with mirror(repository.public) as url:
        assert not await is_unchanged(url, node)
        await refresh(url, node, repository.public / "root.json", DEADLINE_S)
        assert await is_unchanged(url, node)
        assert await is_unchanged(repository.public.as_uri(), node)

        publish(repository, "ROOT/v6")

        assert not await is_unchanged(url, node)
        assert not await is_unchanged(repository.public.as_uri(), node)


async def test_timestamp_without_its_catalog_does_not_count_as_known(
    repository: Repository, node: Path
) -> None:
    url = repository.public.as_uri()
    await refresh(url, node, repository.public / "root.json", DEADLINE_S)
    publish(repository, "ROOT/v6")
    (node / "metadata" / "timestamp.json").write_bytes(
        (repository.public / "metadata/timestamp.json").read_bytes()
    )

    assert not await is_unchanged(url, node)


async def test_expired_timestamp_is_never_unchanged(node: Path, tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(days=40)
    repository = Repository.create(tmp_path / "repo", "alice", clock=lambda: then)
    node.mkdir()
    (node / "timestamp.json").write_bytes((repository.public / "metadata/timestamp.json").read_bytes())

    assert not await is_unchanged(repository.public.as_uri(), node)


@pytest.mark.warns("is of no use")
async def test_damaged_catalog_is_fetched_again(repository: Repository, node: Path) -> None:
    url, root = repository.public.as_uri(), repository.public / "root.json"
    known = await refresh(url, node, root, DEADLINE_S)
    data = (node / "catalog").read_bytes()
    (node / "catalog").write_bytes(data[:-1] + b"\0")

    assert last_known(node) is None
    assert await refresh(url, node, root, DEADLINE_S) == known
    assert (node / "catalog").read_bytes() == data


def test_daemon_imports_no_tuf() -> None:
    program = (
        "import sys, torrentfs.daemon.refresh\n"
        "heavy = {'tuf', 'securesystemslib', 'cryptography', 'urllib3', 'httpx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "[]\n"
