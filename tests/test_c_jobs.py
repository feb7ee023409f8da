"""This module tests that the random reader finds what differs, and nothing where nothing does."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import c_jobs
import pytest
from c_jobs import RandomReader
from trees import MTIME_NS, odd_tree

pytestmark = pytest.mark.needs("gcc")
# Of some 20 paths, each gets each operation hundreds of times.
OPERATIONS = 20_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_jobs.compiled("random_reader", tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def reader(program: Path, tmp_path: Path) -> RandomReader:
    """A random reader of a copy that is like the original."""
    known = odd_tree(tmp_path / "known")
    subprocess.run(["cp", "-a", known, tmp_path / "copy"], check=True)
    listing = c_jobs.write_list(known, tmp_path / "list")
    return RandomReader(program, tmp_path / "copy", known, listing)


@pytest.mark.parametrize("dropping", [False, True])
def test_equal_trees_have_no_difference(reader: RandomReader, dropping: bool) -> None:
    done = reader.run(operations=OPERATIONS, dropping=dropping)

    assert done.failures == []
    assert done.exit_code == 0
    assert OPERATIONS <= done.operations < OPERATIONS + 8
    assert done.bytes > 0
    assert done.longest_ms > 0
    assert done.longest.partition(" ")[0] in {"stat", "absent", "open", "read", "map", "list", "readlink"}


def test_a_seed_gives_the_same_operations(reader: RandomReader) -> None:
    read = [reader.run(operations=2000, seed=seed).bytes for seed in (1, 1, 2)]

    assert read[0] == read[1] != read[2]


def change_bytes(root: Path) -> None:
    path = root / "sub" / "larger"
    with path.open("r+b") as file:
        file.seek(123_456)
        file.write(bytes(1000))
    os.utime(path, ns=(MTIME_NS + len("sub/larger"), MTIME_NS + len("sub/larger")))


def touch(root: Path) -> None:
    os.utime(root / "plain", ns=(MTIME_NS, MTIME_NS + 1))


def link_elsewhere(root: Path) -> None:
    (root / "dangling").unlink()
    (root / "dangling").symlink_to("elsewhere")


def replace_by_link(root: Path) -> None:
    (root / "sub" / "just a frame").unlink()
    (root / "sub" / "just a frame").symlink_to("larger")


def add_a_name(root: Path) -> None:
    for number in range(4):
        (root / "sub" / f"larger.absent{number}").touch()


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (change_bytes, "read sub/larger: byte "),
        (change_bytes, "map sub/larger: byte "),
        (lambda root: os.truncate(root / "sub" / "larger", 5), "stat sub/larger: size 5, not 700001"),
        (lambda root: os.truncate(root / "sub" / "larger", 5), "read sub/larger: 0 bytes at "),
        (lambda root: os.truncate(root / "sub" / "larger", 5), "map sub/larger: SIGBUS at "),
        (lambda root: (root / "setuid").chmod(0o755), "stat setuid: mode 100755, not 106755"),
        (touch, "stat plain: mtime "),
        (lambda root: (root / "plain").unlink(), "stat plain: fstatat: errno 2, No such file or directory"),
        (lambda root: (root / "plain").unlink(), "open plain: openat: errno 2, No such file or directory"),
        (
            lambda root: (root / "sub" / "deeper" / "file").unlink(),
            "list sub/deeper: lists nothing more, not file",
        ),
        (lambda root: (root / "sub" / "nothing here").rmdir(), "list sub/nothing here: readdir: errno 2"),
        (add_a_name, "absent sub/larger.absent"),
        (link_elsewhere, "readlink dangling: leads to elsewhere, not ../"),
        (replace_by_link, "list sub: lists just a frame (type 10), not just a frame (type 8)"),
    ],
)
def test_a_planted_difference_is_found(
    reader: RandomReader, plant: Callable[[Path], object], found: str
) -> None:
    plant(reader.root)

    done = reader.run(operations=OPERATIONS)

    assert done.exit_code == 1
    assert [line for line in done.failures if line.startswith(found)], done.failures


def await_mapping(job: subprocess.Popen[bytes], name: bytes) -> None:
    """Wait until *job* has mapped a file with *name* in its path."""
    while name not in Path(f"/proc/{job.pid}/maps").read_bytes():
        assert job.poll() is None


def test_a_file_cut_off_under_its_mapping_is_a_failure_not_a_crash(
    reader: RandomReader, tmp_path: Path
) -> None:
    (tmp_path / "one").write_bytes(b"sub/larger\0")
    job = replace(reader, listing=tmp_path / "one").start()
    await_mapping(job, b"/copy/sub/larger")

    os.truncate(reader.root / "sub" / "larger", 0)

    assert any("SIGBUS" in line for line in c_jobs.outcome(job).failures)


def test_it_ends_when_it_is_told_to_and_says_what_it_did(reader: RandomReader) -> None:
    job = reader.start(dropping=True)
    await_mapping(job, b"/copy/")

    done = c_jobs.end(job)

    assert done.exit_code == 0
    assert done.operations > 0


def test_it_ends_in_time(reader: RandomReader) -> None:
    assert c_jobs.outcome(reader.start(seconds=0.05)).exit_code == 0
