"""A real mount whose origin goes away for longer than any read waits, and comes back."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import daemons
import pytest
from big import digests, publish_big
from daemons import Site, torrentfs
from mounts import FRONTS
from test_outage import unused_port

pytestmark = pytest.mark.fuse

DEADLINE_S = 3


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        publish_big(made)
        yield made


@contextmanager
def origin(site: Site, port: int) -> Iterator[None]:
    """Serve the repository by HTTP."""
    words = torrentfs(
        *("seed", site.repository.directory, "--http", f"127.0.0.1:{port}", "--listen", "127.0.0.1:0")
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            assert any(str(port) in line for line in process.stdout)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=daemons.DEADLINE_S)


def digest(path: Path) -> str:
    """Return what a job makes of a file, none of it from the page cache."""
    drop = 'dd if="$1" iflag=nocache count=0 status=none && sha256sum < "$1"'
    done = subprocess.run(["sh", "-c", drop, "sh", path], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[0]


def complaint(path: Path) -> str:
    """Return why a file cannot be read."""
    done = subprocess.run(
        ["cat", path], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode
    return done.stderr


def test_what_is_here_works_offline_the_rest_fails_soon_and_all_is_well_soon_after(site: Site) -> None:
    port, files = unused_port(), [site.mountpoint / "BIG/v1" / f"{number:02}" for number in range(48)]
    options = ["--repository", f"http://127.0.0.1:{port}", "--set", f"mount.read_deadline_s={DEADLINE_S}"]
    with origin(site, port):
        site.mount(*options, "--set", "node.readahead_pieces_max=0")
        assert [digest(path) for path in files[:6]] == digests()[:6]

    assert [digest(path) for path in files[:6]] == digests()[:6]
    assert len(list((site.mountpoint / "BIG/v1").iterdir())) == 48
    assert "Input/output error" in complaint(files[20])  # by the deadline
    for path in files[30:40]:
        assert "Input/output error" in complaint(path)
    log = (site.directory / "cache" / "torrentfs.log").read_text()
    assert "did not come in time" in log
    assert "no source can be reached" in log
    assert [digest(path) for path in files[:6]] == digests()[:6]

    with origin(site, port):
        daemons.await_true(lambda: is_readable(files[40]))
        assert [digest(path) for path in files] == digests()


def is_readable(path: Path) -> bool:
    done = subprocess.run(["cat", path], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0
