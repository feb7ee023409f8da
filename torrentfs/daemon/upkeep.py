"""This module commits what an origin owes its repository: its own address, and signatures that stay fresh.

It blocks, but never long: call it in a thread. A publisher that holds the lock goes first; when to try again
is the caller's.
"""

import logging
import time
from collections.abc import Callable

from torrentfs.config import SeedSettings, format_address, parse_address
from torrentfs.repository.workshop import Repository

LOCK_WAIT_S = 1.0
"""How long a publisher is waited for; a publication may take an hour."""
REFRESH_LEFT_S = 29 * 86_400
"""Signatures that expire sooner are made anew: daily, as they are good for 30 days."""
_WILDCARDS = ("0.0.0.0", "::")

log = logging.getLogger(__name__)


class Upkeep:
    """What is to be committed to *repository* besides publications."""

    def __init__(self, repository: Repository, *, clock: Callable[[], float] = time.time) -> None:
        """Have done nothing yet."""
        self._repository = repository
        self._clock = clock
        self._advertised = False

    def due(self, address: str, expires: int) -> bool:
        """Tell whether there is something to do that we may, in a catalog that *expires* (unix s) then."""
        unnamed = bool(address) and not self._advertised
        return (unnamed or self._is_stale(expires)) and self._repository.can_commit

    def work(self, address: str) -> None:
        """Name *address*, if not empty, among the catalog's seeders, once; sign anew what is a day old.

        Raises:
            RepositoryError: another process is committing, or nothing can be written. Try again later.
            UsageError: the catalog has no room for another seeder.
        """
        with self._repository.lock(LOCK_WAIT_S):
            catalog = self._repository.catalog()
            if address and not self._advertised and address not in catalog.seeders:
                catalog = self._repository.set_seeders((*catalog.seeders, address))
                log.info("the catalog names %s for peers now", address)
            self._advertised = bool(address)
            if self._is_stale(catalog.expires):
                catalog = self._repository.refresh()
                log.info("signed anew: catalog version %d", catalog.version)

    def _is_stale(self, expires: int) -> bool:
        return expires - self._clock() < REFRESH_LEFT_S


def advertised(settings: SeedSettings, listen: tuple[str, int]) -> str:
    """Return the address that the catalog is to name for an origin that listens at *listen*; empty: none.

    A port that was free by chance is another after a restart, so it counts only if `advertise` is given.
    """
    host, port = parse_address(settings.advertise or settings.swarm.listen)
    if not settings.advertise and (host in _WILDCARDS or not port):
        return ""
    return format_address(host, port or listen[1])
