import fcntl
import gzip
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from catalogs import Handler, mirror, publish
from tuf.api.metadata import Metadata, Root

from torrentfs.errors import (
    CacheError,
    DeadlineError,
    ExpiredError,
    FetchError,
    FormatError,
    TorrentfsError,
    TrustError,
)
from torrentfs.repository import shards, trust
from torrentfs.repository import update as limits
from torrentfs.repository.catalog import Catalog, decode
from torrentfs.repository.update import main, update
from torrentfs.repository.workshop import Repository

Answer = Callable[[Handler], None]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create(tmp_path / "repo", "alice", ["127.0.0.1:6881"])
    publish(made, "ROOT/v6", "AliRoot/v5")
    return made


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return tmp_path / "node"


def known(node: Path) -> Catalog:
    return decode((node / "catalog").read_bytes())


def from_disk(repository: Repository, node: Path) -> bool:
    """Update a node from the repository's own files; return whether it learned something."""
    return update(repository.public.as_uri(), node, repository.public / "root.json").changed


def refused(kind: type[TorrentfsError], url: str, node: Path, root: Path, match: str = ".") -> None:
    """Check that an update fails with one line, and leaves the node's catalog alone."""
    before = (node / "catalog").read_bytes() if (node / "catalog").exists() else None
    with pytest.raises(kind, match=match) as caught:
        update(url, node, root)
    assert type(caught.value) is kind
    assert ((node / "catalog").read_bytes() if before else None) == before


def test_node_learns_what_was_published_by_file_and_http_alike(
    repository: Repository, tmp_path: Path
) -> None:
    with mirror(repository.public) as url:
        answer = update(url + "/", tmp_path / "http", repository.public / "root.json")
    from_disk(repository, tmp_path / "file")

    assert (answer.ok, answer.version, answer.changed) == (True, 2, True)
    assert known(tmp_path / "http") == known(tmp_path / "file") == repository.catalog()


def test_node_follows_commits_and_keeps_only_what_is_current(repository: Repository, node: Path) -> None:
    assert from_disk(repository, node)
    assert not from_disk(repository, node)
    many = [f"p/{index}" for index in range(200)]
    publish(repository, *many)

    assert from_disk(repository, node)

    assert known(node) == repository.catalog()
    assert len(list((node / "targets").iterdir())) == 1 + 4
    assert (node / "timestamp.json").read_bytes() == (
        repository.public / "metadata/timestamp.json"
    ).read_bytes()


def test_shards_that_are_known_are_not_fetched_again(repository: Repository, node: Path) -> None:
    publish(repository, *(f"p/{index}" for index in range(200)))
    asked: list[str] = []

    def note(handler: Handler) -> None:
        asked.append(handler.path)
        super(Handler, handler).do_GET()

    class Noted(dict[str, Answer]):
        """Answers every path, and writes it down."""

        def get(self, _path: str, _default: object = None) -> Answer:  # type: ignore[override]
            return note

    with mirror(repository.public, Noted()) as url:
        update(url, node, repository.public / "root.json")
        first, asked[:] = list(asked), []
        publish(repository, "p/7")
        update(url, node, repository.public / "root.json")

    assert sum(".shard-" in path for path in first) == 4
    assert sum(".shard-" in path for path in asked) == 1
    assert len(asked) == 6


def test_older_catalog_is_refused_after_a_newer_one(
    repository: Repository, node: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(repository.public, tmp_path / "old")
    publish(repository, "ROOT/v6")
    from_disk(repository, node)

    refused(TrustError, old.as_uri(), node, repository.public / "root.json", "must be >=")
    assert known(node).version == 3


def test_catalog_that_another_root_signed_is_refused(
    repository: Repository, node: Path, tmp_path: Path
) -> None:
    other = Repository.create(tmp_path / "other", "alice")

    refused(TrustError, other.public.as_uri(), node, repository.public / "root.json", "signed by 0/1")
    from_disk(repository, node)
    refused(TrustError, other.public.as_uri(), node, repository.public / "root.json")


def test_trust_file_that_is_none_is_refused(repository: Repository, node: Path, tmp_path: Path) -> None:
    url = repository.public.as_uri()
    (tmp_path / "garbage").write_bytes(b"\0" * 1000)

    refused(TrustError, url, node, tmp_path / "nowhere", "trust file")
    refused(TrustError, url, node, tmp_path / "garbage")
    refused(TrustError, url, node, repository.public / "metadata/1.targets.json")


def test_expired_repository_is_refused_and_says_what_to_do(node: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    times = itertools.chain([now - timedelta(days=29)], itertools.repeat(now - timedelta(days=31)))
    sleeping = Repository.create(tmp_path / "sleeping", "alice", clock=lambda: next(times))
    from_disk(sleeping, node)
    sleeping.refresh()

    refused(ExpiredError, sleeping.public.as_uri(), node, sleeping.public / "root.json", "repo refresh")
    assert known(node).version == 1


def edited(path: Path, old: bytes, new: bytes) -> bytes:
    data = path.read_bytes()
    assert old in data
    return data.replace(old, new)


def send(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def send_without_end(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def stall(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.wfile.flush()
    time.sleep(20)


def hostile(repository: Repository) -> Iterator[tuple[type[TorrentfsError], dict[str, Answer]]]:
    """Yield what a mirror may try, and what it must end in."""
    metadata = repository.public / "metadata"
    shard = next((repository.public / "targets/catalog/default").glob("*.shard-0"))
    shard_url = f"/targets/catalog/default/{shard.name}"
    for name in ("timestamp", "2.snapshot", "1.targets", "2.default"):
        path = metadata / f"{name}.json"
        url = f"/metadata/{name}.json"
        yield TrustError, {url: send(edited(path, b'"expires":"2', b'"expires":"3'))}
        yield TrustError, {url: send_without_end}
        yield TrustError, {url: send(b"[" * 10_000)}
        yield FetchError, {url: hang_up}
        yield FetchError, {url: send(b"", 404)}
        yield FetchError, {url: send(path.read_bytes(), 302, Location=url + "?")}
    yield TrustError, {"/metadata/2.root.json": send(b"{}")}
    yield TrustError, {"/metadata/2.root.json": send((metadata / "1.root.json").read_bytes())}
    yield FetchError, {"/metadata/2.root.json": send(b"", 500)}
    yield TrustError, {shard_url: send(edited(shard, b"ROOT/v6", b"ROOT/v7"))}
    yield TrustError, {shard_url: send(shard.read_bytes()[:-1])}
    yield TrustError, {shard_url: send(shard.read_bytes() + b" ")}
    yield TrustError, {shard_url: send_without_end}
    yield FetchError, {shard_url: send(b"", 403)}


def test_whatever_a_mirror_sends_instead_is_one_clear_error_until_it_is_right_again(
    repository: Repository, node: Path
) -> None:
    for kind, answers in hostile(repository):
        with mirror(repository.public, answers) as url:
            refused(kind, url, node, repository.public / "root.json")
    refused(FetchError, "http://127.0.0.1:1", node, repository.public / "root.json", "refused")
    assert not (node / "catalog").exists()

    assert from_disk(repository, node)
    assert known(node) == repository.catalog()


def test_compressed_answers_are_not_unpacked(repository: Repository, node: Path) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    answers = {"/metadata/timestamp.json": send(bomb, Content_Encoding="gzip")}

    with mirror(repository.public, answers) as url:
        refused(TrustError, url, node, repository.public / "root.json")


def test_what_a_signer_got_wrong_is_a_format_error(
    repository: Repository, node: Path, tmp_path: Path
) -> None:
    from_disk(repository, node)
    good = b'{"version":1,"name":"alice","counter":9,"shard_bits":0}'
    wrong: list[dict[str, bytes]] = [
        {"catalog/default/namespace": b"{}"},
        {"catalog/default/namespace": b" " * 300_000},
        {"catalog/default/namespace": good, "catalog/default/shard-0": b"[]"},
        {
            "catalog/default/namespace": good,
            "catalog/default/shard-0": b'{"version":1,"aliases":{"a":"../b"}}',
        },
    ]

    for number, files in enumerate(wrong):
        copy = Repository(shutil.copytree(repository.directory, tmp_path / f"copy{number}"))
        state = (copy.public / "metadata" / "2.default.json").read_bytes()
        sign_anything(copy, files)
        assert (copy.public / "metadata" / "2.default.json").read_bytes() == state
        refused(FormatError, copy.public.as_uri(), node, repository.public / "root.json", "catalog")


@pytest.mark.parametrize(
    ("module", "limit", "length"),
    [
        (shards, "SHARD_LENGTH_MAX", 100),
        (shards, "NAMESPACE_LENGTH_MAX", 20),
        (limits, "CATALOG_LENGTH_MAX", 100),
    ],
)
def test_signed_files_over_a_limit_are_not_even_fetched(
    repository: Repository,
    node: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    limit: str,
    length: int,
) -> None:
    monkeypatch.setattr(module, limit, length)

    refused(FormatError, repository.public.as_uri(), node, repository.public / "root.json", f"{length} ")

    assert not any("shard" in path.name or path.stat().st_size > 100 for path in (node / "targets").iterdir())


def test_role_that_signs_no_catalog_is_not_believed(repository: Repository, node: Path) -> None:
    sign_anything(repository, {"elsewhere/namespace": b"{}"})

    refused(
        TrustError,
        repository.public.as_uri(),
        node,
        repository.public / "root.json",
        "catalog/default/namespace",
    )


def sign_anything(repository: Repository, files: dict[str, bytes]) -> None:
    """Commit target files that a `Repository` would not, with its keys."""
    metadata, now = repository.public / "metadata", datetime.now(UTC).replace(microsecond=0)
    root, targets = ((metadata / f"1.{name}.json").read_bytes() for name in ("root", "targets"))
    keys = trust.load_online(repository.private, root, targets)
    for name, data in files.items():
        directory, _, base = name.rpartition("/")
        path = repository.public / "targets" / directory / f"{hashlib.sha256(data).hexdigest()}.{base}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    role = trust.sign_role(keys, 3, files, now)
    snapshot = trust.next_snapshot(keys, (metadata / "2.snapshot.json").read_bytes(), (3, role), now)
    (metadata / "3.default.json").write_bytes(role)
    (metadata / "3.snapshot.json").write_bytes(snapshot)
    (metadata / "timestamp.json").write_bytes(trust.sign_timestamp(keys, 3, (3, snapshot), now))


def test_new_online_keys_are_followed_from_the_old_root(repository: Repository, node: Path) -> None:
    from_disk(repository, node)
    metadata = repository.public / "metadata"
    new_keys, pem = trust.generate()
    root = Metadata[Root].from_bytes((metadata / "1.root.json").read_bytes())
    root.signed.version = 2
    root.signed.revoke_key(root.signed.roles["timestamp"].keyids[0], "timestamp")
    root.signed.add_key(new_keys.signers["timestamp"].public_key, "timestamp")
    root.sign(trust._load(repository.private / "root.pem"))
    (metadata / "2.root.json").write_bytes(root.to_bytes())
    trust.save(repository.private, {"timestamp": pem["timestamp"]})

    publish(repository, "new")

    assert from_disk(repository, node)
    assert known(node).version == 3
    assert not from_disk(repository, node)


def test_node_whose_files_are_damaged_or_half_written_mends_them(repository: Repository, node: Path) -> None:
    from_disk(repository, node)
    good = (node / "catalog").read_bytes()
    for path in sorted(node.rglob("*")):
        if path.is_file() and path.name != "root.json":
            for damage in (b"", b"x" * 100):
                path.write_bytes(damage)
                from_disk(repository, node)
                assert (node / "catalog").read_bytes() == good
    (node / "metadata" / "tmpabcdefgh").touch()
    (node / ".catalog.123.new").touch()

    from_disk(repository, node)

    assert {path.name for path in node.iterdir()} == {
        "catalog",
        "lock",
        "metadata",
        "targets",
        "timestamp.json",
    }
    assert not list((node / "metadata").glob("tmp*"))


def test_two_updates_at_once_are_not_made(repository: Repository, node: Path) -> None:
    from_disk(repository, node)
    with (node / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        refused(
            CacheError, repository.public.as_uri(), node, repository.public / "root.json", "another update"
        )


def test_directory_that_cannot_be_used_is_a_cache_error(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    refused(CacheError, repository.public.as_uri(), tmp_path / "file", repository.public / "root.json")


def test_urls_that_are_none_are_fetch_errors(repository: Repository, node: Path) -> None:
    for url in (
        "ftp://example.org/",
        "/srv/alice/public",
        "file://host/x",
        "http://",
        "http://[::1",
        "nonsense",
    ):
        refused(FetchError, url, node, repository.public / "root.json")


def run(*arguments: object) -> tuple[int, dict[str, object]]:
    """Run the program in a process of its own; return its exit code and what it printed."""
    command = [sys.executable, "-P", "-m", "torrentfs.repository.update", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return done.returncode, answer


def test_program_answers_in_one_line_of_json(
    repository: Repository, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = repository.public / "root.json"

    code, answer = run("--url", repository.public.as_uri(), "--directory", node, "--trust", root)
    assert (code, answer["ok"], answer["version"], answer["changed"]) == (0, True, 2, True)

    assert main(["--url", "file:///nowhere", "--directory", str(node), "--trust", str(root)]) == 1
    failure = msgspec.json.decode(capsys.readouterr().out)
    assert (failure["ok"], failure["kind"]) == (False, "FetchError")
    assert "/nowhere" in failure["error"]


def test_program_gives_up_in_time_when_a_mirror_stalls(repository: Repository, node: Path) -> None:
    answers: dict[str, Answer] = {"/metadata/timestamp.json": stall}

    with mirror(repository.public, answers) as url:
        code, answer = run(
            "--url", url, "--directory", node, "--trust", repository.public / "root.json", "--deadline", 1
        )

    assert (code, answer["kind"]) == (1, DeadlineError.__name__)
