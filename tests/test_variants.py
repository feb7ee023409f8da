"""Symbolic links with variables: what they lead to, and that nothing else changes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import daemons
import pytest
from daemons import Site
from hypothesis import given
from hypothesis import strategies as st
from mounts import FRONTS

from torrentfs.repository.publisher import publish
from torrentfs.tree.variants import TARGET_LENGTH_MAX, resolve

VARIABLES = {b"ARCH": b"el9-x86_64", b"EMPTY": b"", b"NESTED": b"$(ARCH)"}


@pytest.mark.parametrize(
    ("target", "resolved"),
    [
        (b"$(ARCH)/bin", b"el9-x86_64/bin"),
        (b"../$(ARCH)/$(ARCH)", b"../el9-x86_64/el9-x86_64"),
        (b"$(NONE:-el8)/lib", b"el8/lib"),
        (b"$(ARCH:-el8)/lib", b"el9-x86_64/lib"),
        (b"a$(EMPTY)b", b"ab"),
        (b"x$(NONE:-)y", b"xy"),
        # Left as they were published.
        (b"$(NONE)/lib", b"$(NONE)/lib"),
        (b"$(EMPTY)", b"$(EMPTY)"),
        (b"$(NESTED)", b"$(ARCH)"),
        (b"$(2bad)", b"$(2bad)"),
        (b"$ARCH ${ARCH} $(ARCH", b"$ARCH ${ARCH} $(ARCH"),
        (b"plain/\xff", b"plain/\xff"),
    ],
)
def test_a_target_is_resolved(target: bytes, resolved: bytes) -> None:
    assert resolve(target, VARIABLES) == resolved


@given(st.binary(min_size=1, max_size=200))
def test_any_target_stays_one(target: bytes) -> None:
    assert 0 < len(resolve(target, VARIABLES)) <= TARGET_LENGTH_MAX


def test_a_target_that_would_be_too_long_is_left(tmp_path: Path) -> None:
    assert resolve(b"$(A)" * 5, {b"A": b"a" * 1000}) == b"$(A)" * 5


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with daemons.site(tmp_path, monkeypatch, request.param) as made:
        source = tmp_path / "variants"
        for name in ("el8", "el9"):
            (source / name).mkdir(parents=True)
            (source / name / "data").write_text(name)
        (source / "here").symlink_to("$(ARCH:-el8)")
        (source / "nowhere").symlink_to("$(NOBODY)")
        publish(made.repository, source, "V/v1", progress=None)
        yield made


@pytest.mark.fuse
@pytest.mark.parametrize("arch", ["", "el9"])
def test_each_mount_has_its_own(site: Site, arch: str) -> None:
    site.mount(*(["--set", f"mount.variables.ARCH={arch}"] if arch else []))
    here, wanted = site.mountpoint / "V/v1/here", arch or "el8"

    look = 'readlink "$1"; stat -c %s "$1"; cat "$1/data"; echo; readlink "$2"'
    words = ["sh", "-c", look, "sh", here, here.parent / "nowhere"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [wanted, str(len(wanted)), wanted, "$(NOBODY)"]
    site.command("umount", site.mountpoint)


@pytest.mark.fuse
@pytest.mark.parametrize("setting", ["mount.variables.1A=x", "mount.variables.A-B=x", "mount.variables=7"])
def test_what_is_no_variable_is_refused(site: Site, setting: str) -> None:
    done = site.mount("--set", setting, check=False)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
