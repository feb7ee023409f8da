"""This module says whom a seeder's tracker serves, and where that tells nodes to reach the seeder itself."""

from collections.abc import Sequence

from torrentfs.config import Network, TrackerSettings, parse_address, parse_network
from torrentfs.errors import UsageError
from torrentfs.node.names import is_numeric


def tracked(settings: TrackerSettings, http: str, networks: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks that the tracker is to serve; none: there is to be no tracker.

    Raises: UsageError: it could not work.
    """
    found = tuple(map(parse_network, networks))
    if not settings.enabled:
        return ()
    if not http:
        raise UsageError(
            "the tracker answers on the web server: say where that is to listen"
            " (--http HOST:PORT; seed.http in a file)"
        )
    if not networks:
        raise UsageError(
            "the tracker needs to know whose nodes may find each other: name the site's networks"
            " (--site 10.0.0.0/8, as often as needed; node.site.networks in a file)"
        )
    return found


def reached(named: Sequence[str], listen: tuple[str, int]) -> tuple[str, int]:
    """Return where nodes are told to reach the seeder; a wildcard: at the address of the web server.

    The first of *named* that is a number. *listen* is what the swarm says of itself: for a wildcard, one
    address of many.
    """
    for text in filter(None, named):
        host, port = parse_address(text)
        if is_numeric(host):
            return host, port or listen[1]
    return listen
