"""This module turns hosts' names into addresses in the background, and remembers them for a while."""

import ipaddress
import logging
import math
import socket
from collections.abc import Callable

import trio

from torrentfs.config import parse_address
from torrentfs.errors import ListenError
from torrentfs.node.sockets import Address

log = logging.getLogger(__name__)

LOOKUP_DEADLINE_S = 10.0
AGE_MAX_S = 300.0
LOOKUPS_MAX = 256
"""How many names may wait to be looked up; further ones are left out, and said so."""
LOOKUPS_AT_ONCE = 4
RETRY_PAUSE_S = (5.0, 300.0)
"""The first and the longest pause before a name without an answer is looked up again."""

Host = tuple[str, int]


class Names:
    """Addresses of peers; *resolved* is called with each that had to be looked up."""

    def __init__(self, resolved: Callable[[Host, Address], None]) -> None:
        self._resolved = resolved
        self._known: dict[Host, tuple[Address, float]] = {}
        self._asked: set[Host] = set()
        self._send, self._receive = trio.open_memory_channel[Host](LOOKUPS_MAX)
        self._limiter = trio.Semaphore(LOOKUPS_AT_ONCE)

    def get(self, peer: Host) -> Address | None:
        """Return the address of *peer*, or None and look it up; an old answer is returned and renewed."""
        if is_numeric(peer[0]):
            return peer
        address, time = self._known.get(peer, (None, -math.inf))
        if trio.current_time() - time > AGE_MAX_S and peer not in self._asked:
            if len(self._asked) < LOOKUPS_MAX:
                self._asked.add(peer)
                self._send.send_nowait(peer)
            else:
                log.warning("too many names to look up: %s is left out", peer[0])
        return address

    async def run(self) -> None:
        """Look names up until cancelled, each until there is an answer."""
        async with trio.open_nursery() as nursery:
            async for peer in self._receive:
                nursery.start_soon(self._resolve, peer)

    async def _resolve(self, peer: Host) -> None:
        pause = RETRY_PAUSE_S[0]
        while (address := await self._try(peer)) is None:
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_PAUSE_S[1])
        self._asked.discard(peer)
        self._known[peer] = (address, trio.current_time())
        self._resolved(peer, address)

    async def _try(self, peer: Host) -> Address | None:
        try:
            async with self._limiter:
                with trio.fail_after(LOOKUP_DEADLINE_S):
                    return await _look_up(*peer)
        except (OSError, trio.TooSlowError) as error:
            log.warning("peer %s: %s", peer[0], error or "no answer to its name")
            return None


def is_numeric(host: str) -> bool:
    """Tell whether *host* is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def numeric(listen: str) -> Address:
    """Return the address to listen on, by number. Raises: ListenError, UsageError."""
    host, port = parse_address(listen)
    if is_numeric(host):
        return host, port
    try:
        with trio.fail_after(LOOKUP_DEADLINE_S):
            return await _look_up(host, port)
    except (OSError, trio.TooSlowError) as error:
        raise ListenError(f"cannot listen on {listen}: {error or 'no answer to its name'}") from error


async def _look_up(host: str, port: int) -> Address:
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # IPv4 first: what listens on a name's IPv6 address only is rare among seeders.
    _, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(address[0]), int(address[1])
