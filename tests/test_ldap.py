"""Tests of settings that come from a site's LDAP entry: Debian's slapd, and servers that mean harm."""

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import daemons
import msgspec
import pytest
from slapd import BASE, Slapd, slapd

from torrentfs.config import MountConfiguration, SiteSettings, load_mount
from torrentfs.daemon.control_client import ask
from torrentfs.daemon.settings import with_entry
from torrentfs.errors import UsageError

pytestmark = pytest.mark.needs("slapd")

ATTRIBUTES = {
    "node.site.install_method": "installMethod",
    "node.site.networks": "siteNetwork",
    "node.site.seeders": "siteSeeder",
    "node.site.mirrors": "siteMirror",
    "node.site.within.upload": "uploadLimit",
    "node.site.local_discovery": "localDiscovery",
}
CREAM = {
    "installMethod": ["Torrent"],
    "siteNetwork": ["10.0.0.0/8", "2001:db8::/32"],
    "siteSeeder": ["vobox.example:6881"],
    "uploadLimit": ["1000000"],
    "localDiscovery": ["FALSE"],
}
GONE = "ldap://127.0.0.1:1"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Slapd]:
    """A server whose entry has the attributes of CREAM."""
    with slapd(tmp_path / "slapd") as running:
        running.put(**CREAM)
        yield running


def settings_file(tmp_path: Path, server: str, rest: str = "", **more: str) -> Path:
    """Write a node's settings: *rest*, and an entry at *server*; *more* settings by attribute."""
    file = tmp_path / "site.toml"
    attributes = {**ATTRIBUTES, **more}
    lines = [f'cache = "{tmp_path / "cache"}"', rest, "[ldap]", f'server = "{server}"', f'base = "{BASE}"']
    lines += ["[ldap.attributes]", *(f'"{name}" = "{value}"' for name, value in attributes.items())]
    file.write_text("\n".join(lines))
    return file


def settings(file: Path, **ldap: object) -> SiteSettings:
    """Return the site that the settings in *file* come to."""
    configuration = load_mount(file)
    assert configuration.ldap is not None
    changed = msgspec.structs.replace(configuration.ldap, **ldap)
    return with_entry(msgspec.structs.replace(configuration, ldap=changed), file).node.site


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("ldap-*"))


def test_a_site_has_what_its_entry_says_and_defaults_for_the_rest(directory: Slapd, tmp_path: Path) -> None:
    site = settings(settings_file(tmp_path, directory.url))

    assert site.install_method == "torrent"
    assert site.networks == ("10.0.0.0/8", "2001:db8::/32")
    assert site.seeders == ("vobox.example:6881",)
    assert (site.within.upload, site.within.download) == (1_000_000, 0)
    assert not site.local_discovery and site.peer_exchange
    assert site.mirrors == ()


def test_what_the_file_says_wins_over_the_entry(directory: Slapd, tmp_path: Path) -> None:
    directory.put(installMethod=["HTTP"])
    # One that says what is the default says it nevertheless.
    file = settings_file(tmp_path, directory.url, '[node.site]\nseeders = []\nnetworks = ["192.0.2.0/24"]')

    site = settings(file)

    assert (site.seeders, site.networks, site.install_method) == ((), ("192.0.2.0/24",), "http")


@pytest.mark.warns("ldap://127.0.0.1")
@pytest.mark.parametrize("silent", [False, True])
def test_last_known_values_serve_while_the_server_is_away(
    directory: Slapd, tmp_path: Path, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file = settings_file(tmp_path, directory.url)
    before = settings(file)
    os.kill(directory.pid, signal.SIGSTOP if silent else signal.SIGKILL)

    try:
        after = settings(file, timeout_s=1.0)
    finally:
        with suppress(ProcessLookupError):
            os.kill(directory.pid, signal.SIGCONT)

    assert after == before and after.networks
    (warning,) = caplog.messages
    assert directory.url in warning and "(0.0 h ago)" in warning and "\n" not in warning


@pytest.mark.warns("no values of it are known")
def test_a_node_starts_with_its_file_when_nothing_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = settings(settings_file(tmp_path, GONE, '[node.site]\nnetworks = ["192.0.2.0/24"]'))

    assert site == SiteSettings(networks=("192.0.2.0/24",))
    assert GONE in caplog.text and kept(tmp_path) == []


@pytest.mark.warns("going on with its values")
@pytest.mark.parametrize(
    ("attribute", "values", "complaint"),
    [
        ("siteNetwork", ["10.0.0.5/8"], "attribute siteNetwork: node.site.networks.*did you mean 10.0.0.0/8"),
        ("siteSeeder", ["vobox"], "attribute siteSeeder: node.site.seeders.*not an address"),
        ("uploadLimit", ["-1"], "attribute uploadLimit: node.site.within.upload"),
        ("uploadLimit", ["1", "2"], "attribute uploadLimit: node.site.within.upload: 2 values"),
        ("installMethod", ["package"], "attribute installMethod: node.site.install_method"),
        ("siteMirror", ["x" * 5000], "siteMirror: more than"),
        ("siteMirror", [f"http://{number}.example" for number in range(2000)], "siteMirror: more than"),
    ],
)
def test_a_wrong_value_is_named_and_the_last_known_ones_serve(
    directory: Slapd,
    tmp_path: Path,
    attribute: str,
    values: list[str],
    complaint: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = settings_file(tmp_path, directory.url)
    before = settings(file)
    directory.put(**{attribute: values})

    after = settings(file)

    assert after == before
    (warning,) = caplog.messages
    assert re.search(complaint, warning) and "\n" not in warning


@pytest.mark.warns("there is no such entry")
def test_an_entry_that_is_not_there_is_said(directory: Slapd, tmp_path: Path) -> None:
    site = settings(settings_file(tmp_path, directory.url), base="name=other,o=alice,dc=cern,dc=ch")

    assert site == SiteSettings()


@pytest.mark.warns("those kept are of no use")
@pytest.mark.parametrize("damage", [b"", b"{", b'{"time": 1, "values": {"node.site.networks": ["x"]}}'])
def test_damaged_last_known_values_are_not_used(directory: Slapd, tmp_path: Path, damage: bytes) -> None:
    file = settings_file(tmp_path, directory.url)
    settings(file)
    os.kill(directory.pid, signal.SIGKILL)
    (one,) = kept(tmp_path)
    one.write_bytes(damage)

    assert settings(file) == SiteSettings()


@pytest.mark.warns("are not kept for later")
def test_a_cache_that_cannot_be_written_is_no_hindrance(directory: Slapd, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()

    assert settings(settings_file(tmp_path, directory.url)).networks


@pytest.mark.parametrize(
    "name", ["repository", "trust", "cache", "mountpoint", "node.swarm.listen", "nosuch"]
)
def test_only_what_concerns_the_exchange_may_come_from_there(tmp_path: Path, name: str) -> None:
    file = settings_file(tmp_path, GONE, **{name: "installMethod"})

    with pytest.raises(UsageError, match=rf"site.toml: ldap.attributes: {name} cannot come from LDAP"):
        settings(file)


@pytest.mark.parametrize(
    "server", ["http://ldap.example", "ldap://", "ldap.example", "ldap://x:99999", "ldap://x/o=a"]
)
def test_a_server_must_be_one(tmp_path: Path, server: str) -> None:
    with pytest.raises(UsageError, match="no LDAP server"):
        settings(settings_file(tmp_path, server))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ldap3", None)

    with pytest.raises(UsageError, match=r"site.toml: ldap: needs .* pip install 'torrentfs\[ldap\]'"):
        settings(settings_file(tmp_path, GONE))


@contextmanager
def endless(answer: bytes) -> Iterator[str]:
    """Give the URL of a server that says *answer*, and then sends without end."""

    def serve() -> None:
        with suppress(OSError), listening.accept()[0] as channel:
            channel.recv(4096)
            channel.sendall(answer)
            while True:
                channel.sendall(bytes(1 << 20))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"ldap://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.warns("cannot be read|more than an entry|invalid|no answer within|error receiving")
@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"\x30\x84\x7f\xff\xff\xff", b""])
def test_a_server_that_sends_without_end_is_left(tmp_path: Path, answer: bytes) -> None:
    with endless(answer) as server:
        assert settings(settings_file(tmp_path, server), timeout_s=3.0) == SiteSettings()


@pytest.mark.root
@pytest.mark.fuse
def test_a_reload_reads_the_entry_anew(
    directory: Slapd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemons.site(tmp_path, monkeypatch, "native") as site:
        site.mount("--config", settings_file(tmp_path, directory.url))
        before = _served(site)

        directory.put(siteNetwork=["192.0.2.0/24"], installMethod=["http"])
        site.command("reload", site.mountpoint)
        changed = _served(site)
        os.kill(directory.pid, signal.SIGKILL)
        done = site.command("reload", site.mountpoint)

        assert (before.networks, before.install_method) == (("10.0.0.0/8", "2001:db8::/32"), "torrent")
        assert (changed.networks, changed.install_method) == (("192.0.2.0/24",), "http")
        assert _served(site) == changed
        assert directory.url in done.stderr and "h ago" in done.stderr


def _served(site: daemons.Site) -> SiteSettings:
    """Return the settings that the server was started with."""
    (request,) = ask(site.mountpoint, "server", daemons.DEADLINE_S)["requests"]
    return msgspec.convert(request["configuration"], MountConfiguration).node.site
