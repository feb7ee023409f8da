"""Readiness for a service manager (sd_notify(3))."""

import socket
from pathlib import Path

import pytest

from torrentfs.daemon.notify import notify_ready


@pytest.mark.parametrize("abstract", [False, True])
def test_readiness_is_said_to_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)

        notify_ready()

        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "nonsense"])
def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    notify_ready()
