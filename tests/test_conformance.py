"""The conformance suite, on the tree in process and on real mounts, one through each front."""

# Names are bytes of any kind here, which pathlib does not hold.
# ruff: noqa: PTH115, PTH118, PTH208

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from conformance import Conformance, Material, Seen, make_material
from local_content import LocalContent, MemoryLedger
from mounts import FRONTS, Mount, mounted

from torrentfs.config import MountSettings
from torrentfs.errors import TreeError
from torrentfs.fuse.errnos import errno_of
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository
from torrentfs.tree import ROOT, Attributes, Inode, Tree

OWNER = (os.geteuid(), os.getegid())


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    directory = tmp_path_factory.mktemp("material")
    source = make_material(directory / "source")
    single = directory / "Alignment.par"
    single.write_bytes(os.urandom(300_000))
    return Material(
        source=os.fsencode(source),
        path=b"soft/package",
        file_source=os.fsencode(single),
        file_path=b"data/Alignment.par",
        alias=b"soft/latest",
        owner=OWNER,
    )


@pytest.fixture(scope="module")
def repository(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository.create(tmp_path_factory.mktemp("repository") / "alice", "alice")
    publish(made, Path(os.fsdecode(material.source)), material.path.decode())
    publish(made, Path(os.fsdecode(material.file_source)), material.file_path.decode())
    return made


@pytest.fixture(scope="module")
def shown(repository: Repository, material: Material) -> Catalog:
    aliases = {material.alias.decode(): material.path.decode()}
    return msgspec.structs.replace(repository.catalog(), aliases=aliases)


class InProcess:
    """The filesystem without a kernel: paths are walked here, errors are what the kernel would be told."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem

    def stat(self, path: bytes) -> Seen:
        return seen(self._attributes(path), self._filesystem.tree.owner)

    def names(self, path: bytes) -> list[bytes]:
        return [name for _, name, _ in self._filesystem.readdir(self._attributes(path).inode, 0)]

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        return bytes(self._filesystem.read(self._attributes(path).inode, offset, length))

    def readlink(self, path: bytes) -> bytes:
        return self._said(self._filesystem.readlink, self._attributes(path).inode)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        inode = self._attributes(path).inode
        return {name: self._filesystem.xattr(inode, name) for name in self._filesystem.xattr_names(inode)}

    def xattr(self, path: bytes, name: bytes) -> bytes:
        return self._said(self._filesystem.xattr, self._attributes(path).inode, name)

    def _attributes(self, path: bytes) -> Attributes:
        found = self._filesystem.attributes(ROOT)
        for name in path.split(b"/") if path else []:
            if found.mode & 0o170000 != 0o040000:
                raise OSError(errno.ENOTDIR, "")
            below = self._said(self._filesystem.lookup, found.inode, name)
            if below is None:
                raise OSError(errno.ENOENT, "")
            assert below == self._filesystem.attributes(below.inode) or not below.fixed_name
            found = below
        return found

    def _said(self, operation, *values):
        try:
            return operation(*values)
        except TreeError as error:
            raise OSError(errno_of(error), str(error)) from error


def seen(found: Attributes, owner: tuple[int, int]) -> Seen:
    return Seen(found.inode, found.mode, found.nlink, found.size, found.blocks, found.mtime_ns, owner)


class OnMount:
    """A real mount, as any program sees it."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def stat(self, path: bytes) -> Seen:
        found = os.lstat(self._at(path))
        owner = (found.st_uid, found.st_gid)
        return Seen(
            found.st_ino,
            found.st_mode,
            found.st_nlink,
            found.st_size,
            found.st_blocks,
            found.st_mtime_ns,
            owner,
        )

    def names(self, path: bytes) -> list[bytes]:
        return os.listdir(self._at(path))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        descriptor = os.open(self._at(path), os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        return {
            os.fsencode(name): self.xattr(path, os.fsencode(name)) for name in os.listxattr(self._at(path))
        }

    def xattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root


@pytest.fixture(scope="module")
def in_process(repository: Repository, shown: Catalog) -> InProcess:
    content = LocalContent(repository.public)
    tree = Tree(content, MemoryLedger(), OWNER)
    tree.swap(shown)
    return InProcess(Filesystem(tree, content, MountSettings()))


@pytest.fixture(scope="module", params=FRONTS)
def mount(
    request: pytest.FixtureRequest,
    repository: Repository,
    shown: Catalog,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mount]:
    directory = tmp_path_factory.mktemp("mount")
    with mounted(repository.public, shown, directory, front=request.param) as made:
        yield made
        assert "ERROR" not in made.log()


@pytest.fixture(scope="module")
def package(mount: Mount, material: Material) -> Path:
    return mount.path / os.fsdecode(material.path)


class TestInProcess(Conformance):
    @pytest.fixture
    def backend(self, in_process: InProcess) -> InProcess:
        return in_process

    def test_listings_go_on_from_any_position(self, backend: InProcess, material: Material) -> None:
        inode = backend.stat(material.path + b"/names").inode
        listing = list(backend._filesystem.readdir(Inode(inode), 0))

        for index, (position, _, _) in enumerate(listing):
            assert list(backend._filesystem.readdir(Inode(inode), position)) == listing[index + 1 :]


@pytest.mark.fuse
class TestMounted(Conformance):
    @pytest.fixture
    def backend(self, mount: Mount) -> OnMount:
        return OnMount(mount.path)

    def test_a_mapped_file_shows_its_bytes(self, package: Path, material: Material) -> None:
        wanted = Path(os.fsdecode(material.source), "contents/large").read_bytes()

        with (
            (package / "contents/large").open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
        ):
            assert data[-5000:] == wanted[-5000:]
            assert data[:] == wanted

    def test_a_program_runs(self, package: Path) -> None:
        assert subprocess.run([package / "programs/true"], check=False, timeout=30).returncode == 0

    def test_a_script_runs_with_a_shell(self, package: Path) -> None:
        assert subprocess.check_output([package / "programs/shell", "it"], timeout=30) == b"shell it\n"

    def test_a_script_runs_with_an_interpreter_of_the_mount(self, package: Path, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text(f"#!{package}/programs/true\n")
        script.chmod(0o755)

        assert subprocess.run([script], check=False, timeout=30).returncode == 0

    def test_a_library_is_loaded(self, package: Path) -> None:
        load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"

        subprocess.run([sys.executable, "-c", load, package / "programs/library.so"], check=True, timeout=30)

    def test_python_imports_from_it(self, package: Path, mount: Mount) -> None:
        run = [
            sys.executable,
            "-B",
            "-c",
            "import sys; sys.path[0] = sys.argv[1]; import module; print(module.X)",
        ]

        assert (package / "programs").is_dir()
        assert subprocess.check_output([*run, package / "programs"], timeout=30) == b"42\n"

    def test_nothing_can_be_written(self, package: Path) -> None:
        for path in (package / "contents/0", package / "new"):
            with pytest.raises(OSError) as caught:
                path.write_bytes(b"x")
            assert caught.value.errno == errno.EROFS

    def test_it_is_mounted_read_only_without_setuid_and_devices(self, mount: Mount) -> None:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4] == str(mount.path):
                options, kind = line.split()[5], line.partition(" - ")[2].split()
                assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
                assert kind[:2] == ["fuse.torrentfs", "alice"]
                return
        pytest.fail("it is not mounted")

    @pytest.mark.needs("rsync")
    def test_rsync_finds_no_difference(self, package: Path, material: Material) -> None:
        # What 50,000 files and 6 GiB of holes are compared by takes a minute; others compare them.
        compare = ["rsync", "-naHAX", "--checksum", "--delete", "--itemize-changes", "--exclude=sparse"]
        source = material.source + b"/"

        found = subprocess.check_output([*compare, "--exclude=many", source, package], timeout=60)

        assert found == b""

    @pytest.mark.needs("tar")
    def test_tar_makes_the_same_archive(self, package: Path, material: Material) -> None:
        pack = ["tar", "--sort=name", "--owner=0", "--group=0", "--format=pax", "--exclude=many"]
        pack += ["--pax-option=delete=atime,delete=ctime", "--exclude=sparse", "-cf", "-", "-C"]

        published = subprocess.check_output([*pack, material.source, "."], timeout=60)
        shown = subprocess.check_output([*pack, package, "."], timeout=60)

        assert shown == published

    def test_repeated_questions_do_not_reach_the_server(self, package: Path, mount: Mount) -> None:
        (package / "contents/65536").read_bytes()
        before = mount.stats()["bytes_read"]

        for _ in range(3):
            assert len((package / "contents/65536").read_bytes()) == 65_536

        assert mount.stats()["bytes_read"] == before
