"""This module has a mount's server replaced, for the command line, and waits until another serves."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torrentfs.daemon.control_client import Interrupted, ask, ask_once
from torrentfs.daemon.request import again, decode_all, offers
from torrentfs.errors import ControlError, MountError, TorrentfsError

RELOAD_DEADLINE_S = 120.0
"""Longer than a keeper gives a server to start (60 s), and the one before it to serve on."""
LOOK_INTERVAL_S = 0.05
AS_IT_WAS = "the server goes on as it was"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The server that serves now, and how many mounts."""

    pid: int
    version: str
    mounts: int


def reload(mountpoint: Path) -> Reloaded:
    """Have another server serve *mountpoint* (resolved), and all mounts with it, as settings are now.

    Raises: UsageError, TrustError: settings are wrong; MountError: no other server serves; ControlError.
    """
    before = _server(mountpoint)
    # By the code that is installed now: it knows its settings best.
    try:
        wanted = [again(request) for request in decode_all(before["requests"])]
    except TorrentfsError as error:
        raise type(error)(f"{AS_IT_WAS}: {error}") from None
    deadline = time.monotonic() + RELOAD_DEADLINE_S
    try:
        ask_once(mountpoint, "reload", RELOAD_DEADLINE_S, offers(wanted))
    except Interrupted as error:
        raise MountError(f"{error}: reload again") from None
    while time.monotonic() < deadline:
        after = _server(mountpoint)
        if after["pid"] != before["pid"]:
            served = decode_all(after["requests"])
            if not all(request in served for request in wanted):
                raise MountError(f"the server of {mountpoint} died meanwhile, and was started as it was")
            return Reloaded(after["pid"], after["torrentfs"], len(wanted))
        if len(after["refusals"]) > len(before["refusals"]):
            raise MountError(f"{AS_IT_WAS}: {after['refusals'][-1]}")
        time.sleep(LOOK_INTERVAL_S)
    raise MountError(f"no other server serves {mountpoint} within {RELOAD_DEADLINE_S:g} s")


def _server(mountpoint: Path) -> dict[str, Any]:
    """Return what the server says of itself.

    Raises: ControlError.
    """
    answer = ask(mountpoint, "server", RELOAD_DEADLINE_S)
    if not answer["keeper"]:
        raise ControlError(f"{mountpoint} has no keeper (--fuse pyfuse3): umount it, then mount it anew")
    assert isinstance(answer, dict)
    return answer
