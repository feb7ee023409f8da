"""The command line: one-line errors, exit codes, what is printed, and what is not imported."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torrentfs.cli import app

HEAVY = ("tuf", "rich", "starlette", "hypercorn", "click", "cryptography", "hypothesis")


class Outcome:
    """What a command left: exit code, standard output and standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


@pytest.fixture
def torrentfs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in this process, with directories of its own for settings and sockets."""
    monkeypatch.setenv("TORRENTFS_CONFIG_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))

    def run(*arguments: object) -> Outcome:
        code = app.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def repo(torrentfs, tmp_path: Path) -> Path:
    """An empty repository."""
    assert torrentfs("repo", "init", tmp_path / "repo", "--name", "alice").code == 0
    return tmp_path / "repo"


def assert_one_line(outcome: Outcome, code: int, *words: str) -> None:
    """Check that *outcome* is one line of error with *words*."""
    assert outcome.code == code
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


def test_help_names_every_command(torrentfs) -> None:
    outcome = torrentfs("--help")

    assert outcome.code == 0
    for name in app.COMMANDS:
        assert f"  {name} " in outcome.out


@pytest.mark.parametrize(
    "command",
    [[name] for name in app.COMMANDS]
    + [["repo", "init"], ["repo", "refresh"]]
    + [["cache", name] for name in ("ls", "pin", "unpin", "evict", "prefetch", "verify")],
)
def test_every_command_has_a_help_with_an_example(torrentfs, command: list[str]) -> None:
    outcome = torrentfs(*command, "--help")

    assert outcome.code == 0
    assert command == ["repo"] or "Example" in outcome.out


def test_no_command_shows_help_and_is_wrong_usage(torrentfs) -> None:
    outcome = torrentfs()

    assert outcome.code == 2
    assert "Commands:" in outcome.err


@pytest.mark.parametrize(
    "arguments", [["dance"], ["publish"], ["repo", "dance"], ["stats", "--dance"], ["repo", "init", "/x"]]
)
def test_wrong_usage_is_one_line_that_names_the_help(torrentfs, arguments: list[str]) -> None:
    assert_one_line(torrentfs(*arguments), 2, "--help")


def test_a_new_repository_is_empty(torrentfs, repo: Path) -> None:
    assert torrentfs("list", repo).out == "nothing is published here yet\n"
    assert json.loads(torrentfs("list", repo, "--json").out) == []


def test_a_repository_is_not_made_twice(torrentfs, repo: Path) -> None:
    assert_one_line(torrentfs("repo", "init", repo, "--name", "alice"), 1, str(repo))


def test_a_name_that_cannot_be_is_wrong_usage(torrentfs, tmp_path: Path) -> None:
    assert_one_line(torrentfs("repo", "init", tmp_path / "new", "--name", "a b"), 2, "a b")


def test_a_seeder_that_is_no_address_is_wrong_usage(torrentfs, repo: Path) -> None:
    assert_one_line(torrentfs("repo", "refresh", repo, "--seeder", "nonsense"), 2, "nonsense")


def test_refresh_signs_a_newer_version_and_names_seeders(torrentfs, repo: Path) -> None:
    outcome = torrentfs("repo", "refresh", repo, "--seeder", "origin.example.org:6881", "--json")

    record = json.loads(outcome.out)
    assert record["version"] == 2
    assert record["seeders"] == ["origin.example.org:6881"]


def test_publish_says_in_one_line_what_it_made(torrentfs, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)

    first = torrentfs("publish", repo, tmp_path / "file", "data/file", "--json")
    second = torrentfs("publish", repo, tmp_path / "file", "data/file")

    record = json.loads(first.out)
    assert set(record) == {"path", "revision", "infohash", "files", "bytes_in", "bytes_packed", "seconds"}
    assert (record["path"], record["revision"], record["files"]) == ("data/file", 1, 1)
    assert record["bytes_in"] == 1000
    assert len(record["infohash"]) == 64
    assert second.out.startswith("data/file@2 ")
    assert second.out.count("\n") == 1
    assert second.err == ""


def test_list_shows_what_is_published(torrentfs, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    published = json.loads(torrentfs("publish", repo, tmp_path / "file", "data/file", "--json").out)

    [listed] = json.loads(torrentfs("list", repo, "--json").out)
    lines = torrentfs("list", repo).out.splitlines()

    assert listed["path"] == "data/file"
    assert listed["revision"] == 1
    assert listed["infohash"] == published["infohash"]
    assert listed["size"] == 1000
    assert lines[0].split()[:2] == ["PATH", "REVISION"]
    assert lines[1].split()[:2] == ["data/file", "1"]


@pytest.mark.parametrize(("source", "path"), [("missing", "p"), ("file", "a/../b"), ("fifo", "p")])
def test_what_cannot_be_published_is_one_line(
    torrentfs, repo: Path, tmp_path: Path, source: str, path: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")

    outcome = torrentfs("publish", repo, tmp_path / source, path)

    assert outcome.code in (1, 2)
    assert_one_line(outcome, outcome.code)
    assert json.loads(torrentfs("list", repo, "--json").out) == []


@pytest.mark.parametrize("command", [["publish", "{}", "{}", "p"], ["repo", "refresh", "{}"]])
def test_what_is_no_repository_is_said_so(torrentfs, tmp_path: Path, command: list[str]) -> None:
    assert_one_line(torrentfs(*(word.format(tmp_path) for word in command)), 1, "not a repository")


def test_stats_without_any_mount(torrentfs) -> None:
    assert torrentfs("stats").out == "nothing is mounted or seeded\n"
    assert json.loads(torrentfs("stats", "--json").out) == []


@pytest.mark.parametrize("command", ["stats", "umount", "refresh"])
def test_a_directory_that_is_no_mount_is_one_line(torrentfs, tmp_path: Path, command: str) -> None:
    assert_one_line(torrentfs(command, tmp_path), 1, str(tmp_path))


def test_list_of_what_is_neither_repository_nor_mount_is_wrong_usage(torrentfs, tmp_path: Path) -> None:
    assert_one_line(torrentfs("list", tmp_path), 2, "neither")


def test_a_mount_without_settings_says_where_they_belong(torrentfs, tmp_path: Path) -> None:
    assert_one_line(torrentfs("mount", tmp_path / "alice"), 2, "--repository", "etc/alice.toml")


def test_a_wrong_key_in_a_mounts_file_is_named(torrentfs, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "alice.toml").write_text("[mount]\nread_dedline_s = 3\n")

    assert_one_line(torrentfs("mount", tmp_path / "alice"), 2, "alice.toml", "mount.read_deadline_s")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--repository", "ftp://x"], "ftp://x"),
        (["--repository", "http://[::1/x"], "http://[::1/x"),
        (["--repository", "http://x:99999"], "http://x:99999"),
        (["--repository", "file://elsewhere/x"], "file://elsewhere/x"),
        (["--mirror", "http://"], "http://"),
        (["--cache", os.fsdecode(b"/caf\xe9")], "UTF-8"),
        (["--peer", "nonsense"], "nonsense"),
        (["--listen", "nonsense"], "nonsense"),
        (["--set", "mount.read_deadline_s"], "KEY=VALUE"),
        (["--set", "mount.read_deadline_s=soon"], "mount.read_deadline_s"),
        (["--set", "mount.nonsense=1"], "mount.nonsense"),
    ],
)
def test_a_wrong_option_of_mount_is_named(
    torrentfs, repo: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    given = ["--repository", "file:///x", "--trust", repo / "public" / "root.json", *options]

    assert_one_line(torrentfs("mount", tmp_path / "alice", *given), 2, words)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('peers = ["good:1", "nonsense"]', "peers[1]: 'nonsense'"),
        ('mirrors = ["ftp://x"]', "mirrors[0]: 'ftp://x'"),
        ('repository = "nonsense"', "repository: 'nonsense'"),
        ('node.swarm.listen = "nonsense"', "node.swarm.listen: 'nonsense'"),
    ],
)
def test_a_wrong_address_in_a_mounts_file_is_named_with_file_and_key(
    torrentfs, tmp_path: Path, line: str, key: str
) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "alice.toml"
    file.write_text(line)

    assert_one_line(torrentfs("mount", tmp_path / "alice"), 2, f"{file}: {key}")


def test_a_file_that_names_another_mountpoint_is_said_to(torrentfs, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "alice.toml").write_text('mountpoint = "/opt/alice"')

    outcome = torrentfs("mount", tmp_path / "alice")

    assert_one_line(outcome, 2, "etc/alice.toml names another mountpoint, /opt/alice")
    assert "write " not in outcome.err


def test_a_change_of_a_mount_by_mount_8_is_refused_in_words(torrentfs) -> None:
    assert_one_line(torrentfs("zz", "/opt/alice", "-o", "rw,remount"), 2, "cannot be changed", "umount it")


def test_a_missing_trust_file_is_one_line(torrentfs, tmp_path: Path) -> None:
    outcome = torrentfs("mount", tmp_path, "--repository", "file:///x", "--trust", tmp_path / "root.json")

    assert_one_line(outcome, 1, "root.json", "No such file")


def test_an_error_with_a_line_break_is_still_one_line(torrentfs, tmp_path: Path) -> None:
    assert_one_line(torrentfs("list", tmp_path / "a\nb"), 2)


def modules_after(statement: str) -> set[str]:
    """Return the packages that *statement* imports in a process of its own."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_a_daemon_imports_nothing_that_it_does_not_need() -> None:
    assert modules_after("import torrentfs.daemon.server, torrentfs.daemon.alone").isdisjoint(HEAVY)


def test_a_question_to_a_daemon_imports_little() -> None:
    statement = "from torrentfs.cli import app; app.run(['stats', '/nowhere'])"

    assert modules_after(statement).isdisjoint({*HEAVY, "trio", "libtorrent", "httpx"} - {"click"})


def test_a_publication_shows_its_progress_on_a_terminal(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(3_000_000))
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "torrentfs", "publish", str(repo), str(tmp_path / "source"), "data/[x]"]

    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=end, text=True, check=True, timeout=60, env=os.environ
    )
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(terminal, 65_536):
            shown += data
    os.close(terminal)

    assert "data/[x]: looking at the source" in shown.decode()
    assert "data/[x]: writing and signing" in shown.decode()
    assert "100%" in shown.decode()
    assert done.stdout.startswith("data/[x]@1 ")
