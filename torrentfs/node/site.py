"""This module knows a site: who belongs to it, and the bounds that libtorrent is given. No I/O."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any, Literal

import libtorrent as lt

from torrentfs.config import Network, RateSettings, SiteSettings, parse_address, parse_network

Kind = Literal["neighbour", "site_seeder", "upstream"]
KINDS: tuple[Kind, ...] = ("neighbour", "site_seeder", "upstream")

ALLOWED, BLOCKED = 0, 1
"""Flags of libtorrent's ip_filter."""
EVERYBODY = (("0.0.0.0", "255.255.255.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))


class Site:
    """A node's site, and the addresses beyond that its configuration allows."""

    def __init__(self, settings: SiteSettings) -> None:
        """Know what *settings* say. Raises: UsageError: a network or an address is none."""
        self.settings = settings
        self._networks: tuple[Network, ...] = tuple(map(parse_network, settings.networks))
        self._seeders = dict.fromkeys(map(parse_address, settings.seeders))
        self._seeder_hosts = {host for host, _ in self._seeders}
        self._allowed: set[str] = set()

    @property
    def is_bounded(self) -> bool:
        """Tell whether only some may be spoken with."""
        return bool(self._networks)

    @property
    def has_peers(self) -> bool:
        """Tell whether there is BitTorrent at all."""
        return self.settings.install_method == "torrent"

    @property
    def is_limited(self) -> bool:
        """Tell whether peers' rates are bounded."""
        return any(rates != RateSettings() for rates in (self.settings.within, self.settings.beyond))

    @property
    def is_searched(self) -> bool:
        """Tell whether neighbours are looked for by multicast."""
        return self.has_peers and self.is_bounded and self.settings.local_discovery

    @property
    def is_talkative(self) -> bool:
        """Tell whether neighbours tell each other of others."""
        return self.has_peers and self.is_bounded and self.settings.peer_exchange

    def is_within(self, host: str) -> bool:
        """Tell whether IP address *host* lies in the site's networks."""
        address = ip_address(host)
        return any(address in network for network in self._networks)

    def kind(self, host: str) -> Kind:
        """Return what a peer at IP address *host* is; without networks, whom we were told of is beyond."""
        if host in self._seeder_hosts:
            return "site_seeder"
        if self.is_bounded:
            return "neighbour" if self.is_within(host) else "upstream"
        return "upstream" if host in self._allowed else "neighbour"

    def resolved(self, peer: tuple[str, int], host: str) -> bool:
        """Take note of the address of a peer that we were told of; return whether it is a new one beyond.

        Whom we are told to dial may also dial us.
        """
        if peer in self._seeders:
            self._seeder_hosts.add(host)
        is_new = host not in self._allowed
        self._allowed.add(host)
        return is_new and self.is_bounded and not self.is_within(host)

    def filter(self) -> Any:
        """Return libtorrent's ip_filter: nobody but the site and whom we were told of."""
        bounds = lt.ip_filter()
        for first, last in EVERYBODY:
            bounds.add_rule(first, last, BLOCKED)
        for first, last in self._ranges():
            bounds.add_rule(first, last, ALLOWED)
        for host in self._allowed:
            bounds.add_rule(host, host, ALLOWED)
        return bounds

    def limit(self, session: Any) -> None:
        """Bound the rates of *session*, for peers within and beyond apart: one class of peers for each."""
        if not self.is_limited:
            return
        classes = lt.ip_filter()
        outer = _peer_class(session, "beyond", self.settings.beyond)
        for first, last in EVERYBODY:
            classes.add_rule(first, last, 1 << outer)
        inner = _peer_class(session, "within", self.settings.within)
        for first, last in self._ranges():
            classes.add_rule(first, last, 1 << inner)
        session.set_peer_class_filter(classes)

    def _ranges(self) -> Iterator[tuple[str, str]]:
        for network in self._networks:
            yield str(network[0]), str(network[-1])


def _peer_class(session: Any, name: str, rates: RateSettings) -> int:
    number = int(session.create_peer_class(name))
    settings = session.get_peer_class(number)
    settings |= {"download_limit": rates.download, "upload_limit": rates.upload}
    session.set_peer_class(number, settings)
    return number


def share(bytes_by_host: Iterable[tuple[str, int]], site: Site) -> dict[Kind, int]:
    """Return how many bytes came from each kind of peer."""
    sums: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for host, count in bytes_by_host:
        sums[site.kind(host)] += count
    return sums
