"""This module is a BitTorrent tracker over HTTP, for one site: announces (BEP 3) and scrapes (BEP 48).

Who asks is who speaks to us: no parameter or header can name another address. All answers have status 200,
for clients look for the reason of a refusal in those only.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from torrentfs.config import Network, TrackerSettings
from torrentfs.http.announce import (
    Endpoint,
    RefusedError,
    UnknownTorrentError,
    parse_announce,
    parse_scrape,
    torrent_key,
    write_peers,
    write_refusal,
    write_scrape,
)
from torrentfs.http.swarms import Swarms
from torrentfs.repository.metainfo import InfoHash

ANNOUNCE, SCRAPE = "/announce", "/scrape"
SPREAD = 0.1
"""Nodes that started together are told intervals that differ by this much, so that they drift apart."""

Address = IPv4Address | IPv6Address


class OutsideError(RefusedError):
    """A client that is not of the site."""


class Tracker:
    """An ASGI application for `ANNOUNCE` and `SCRAPE`."""

    def __init__(
        self,
        settings: TrackerSettings,
        networks: Sequence[Network],
        seeder: tuple[str, int] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve clients in *networks*. *seeder* is where peers reach this seeder itself.

        Its host may be a wildcard: then each client is told the address by which it reached us.
        """
        self._settings = settings
        self._networks = tuple(networks)
        self._seeder = (ip_address(seeder[0]), seeder[1]) if seeder else None
        self._clock = clock
        self._swarms = Swarms(settings)
        self._announces = 0
        self._scrapes = 0
        self._refused = {"outside": 0, "unknown": 0, "malformed": 0}

    def follow(self, torrents: Iterable[InfoHash], seeded: Iterable[InfoHash]) -> None:
        """Serve *torrents*, and no others, from now on; this seeder has all of *seeded*."""
        self._swarms.follow(map(torrent_key, torrents), map(torrent_key, seeded))

    def learn(self, info_hash: InfoHash) -> None:
        """Serve one torrent more, which this seeder fetches on demand."""
        self._swarms.learn(torrent_key(info_hash))

    def figures(self) -> dict[str, Any]:
        """Return figures for admins."""
        self._swarms.expire(self._clock())
        return {
            "torrents": self._swarms.torrent_count,
            "peers": self._swarms.peer_count,
            "addresses": self._swarms.address_count,
            "announces": self._announces,
            "scrapes": self._scrapes,
            "refused": dict(self._refused),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await PlainTextResponse("GET\n", 405, {"allow": "GET"})(scope, receive, send)
            return
        await Response(self._answer(scope), media_type="text/plain")(scope, receive, send)

    def _answer(self, scope: Scope) -> bytes:
        try:
            client = self._client(scope)
            query: bytes = scope["query_string"]
            if scope["path"] == SCRAPE:
                return self._scrape(query)
            return self._announce(query, client, scope)
        except RefusedError as error:
            kinds = {OutsideError: "outside", UnknownTorrentError: "unknown"}
            self._refused[kinds.get(type(error), "malformed")] += 1
            return write_refusal(str(error))

    def _announce(self, query: bytes, client: Address, scope: Scope) -> bytes:
        announce, now = parse_announce(query), self._clock()
        peers = self._swarms.announce(announce, client.packed, now, self._ourselves(client, scope))
        self._announces += 1
        # Not secret: randomness only spreads load.
        interval_s = self._settings.interval_s * random.uniform(1 - SPREAD, 1 + SPREAD)
        return write_peers(self._swarms.census(announce.torrent, now), peers, int(interval_s))

    def _scrape(self, query: bytes) -> bytes:
        found = {}
        for key in parse_scrape(query):
            try:
                found[key] = self._swarms.census(key, self._clock())
            except UnknownTorrentError:
                continue
        self._scrapes += 1
        return write_scrape(found)

    def _client(self, scope: Scope) -> Address:
        """Return where a request comes from.

        Raises: OutsideError.
        """
        address = _address(scope.get("client"))
        # Link-local addresses mean something only together with an interface, which no answer can name.
        if (
            address is None
            or not any(address in network for network in self._networks)
            or _is_scoped(address)
        ):
            raise OutsideError(f"{address} is not of the networks that this tracker serves")
        return address

    def _ourselves(self, client: Address, scope: Scope) -> Endpoint | None:
        """Return where *client* reaches this seeder; None if it cannot by its kind of address."""
        if self._seeder is None or self._seeder[0].version != client.version:
            return None
        host, port = self._seeder
        if host.is_unspecified:
            reached = _address(scope.get("server"))
            if reached is None or reached.version != client.version:
                return None
            host = reached
        return Endpoint(host.packed + port.to_bytes(2))


def _address(end: tuple[str, int | None] | None) -> Address | None:
    """Return the address of one end of a connection; IPv4 as such, also if it came to an IPv6 socket."""
    try:
        address = ip_address(end[0] if end else "")
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _is_scoped(address: Address) -> bool:
    return isinstance(address, IPv6Address) and address.is_link_local
