"""This module keeps a mount's catalog current: the first one at the start, then a newer one now and then.

Fetching and verifying is `refresh`'s; what a swap means to the tree and the kernel is the filesystem's.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from torrentfs.config import MountSettings
from torrentfs.daemon import refresh
from torrentfs.errors import CacheError, DeadlineError, ExpiredError, TorrentfsError, TrustError
from torrentfs.node.mirrors import Mirror
from torrentfs.repository.catalog import Catalog

Show = Callable[[Catalog], Awaitable[None]]
"""Makes a newer catalog visible."""

REFRESH_TIME_MIN_S = 2.0
"""What a verification gets at least, however long the question whether there is anything new took."""

CHECK_TIMEOUT_S = 10.0
"""How long the repository may say nothing when it is asked for its timestamp."""
CLOSE_DEADLINE_S = 1.0
ASIDE_S = 120.0
"""How long a mirror that failed comes after all others: waiting for it is what costs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a catalog comes from: the repository's *url*, its *trust* file, the *directory* that keeps it.

    *mirrors* are the URLs to ask, in order; the repository's is one of them.
    """

    url: str
    directory: Path
    trust: Path
    mirrors: Sequence[str]


class _Source:
    """A mirror that is asked for the catalog; *last_until*: when it is again asked in its turn."""

    def __init__(self, url: str) -> None:
        self.url = url
        # One for all checks: making an HTTP client takes longer than the check.
        self.mirror = Mirror(url, requests_max=1, timeout_s=CHECK_TIMEOUT_S)
        self.last_until = float("-inf")


class Currency:
    """The catalog that a mount shows, and how old that knowledge is."""

    def __init__(self, origin: Origin, settings: MountSettings, one_at_a_time: trio.Lock) -> None:
        """Know nothing yet; `first` or `resume` comes next.

        *one_at_a_time* is of all mounts that keep what they know in the same directory.

        Raises: UsageError: a URL is not one that can be read.
        """
        self._origin = origin
        self._sources = [_Source(url) for url in origin.mirrors]
        self._settings = settings
        self._one_at_a_time = one_at_a_time
        self._fails = False
        self._mark: object = None
        """Tells which kept catalog is the one that is shown; None: that is in doubt."""
        self._started_s = time.time()
        self.doubt = ""
        """Why the start was with a catalog that may be old; empty if it was not."""
        self.catalog: Catalog

    @property
    def age_s(self) -> float:
        """Seconds since the repository was last seen to have nothing newer, a restart or not in between."""
        try:
            confirmed_s = self._confirmation.stat().st_mtime
        except OSError:
            confirmed_s = self._started_s
        return max(time.time() - confirmed_s, 0.0)

    async def first(self) -> Catalog:
        """Return the catalog to start with: a fresh one, else the last known one if that takes too long.

        Raises: TrustError, FetchError: no catalog was ever known here, and none can be had.
        """
        async with self._one_at_a_time:
            self._mark = refresh.mark(self._origin.directory)
            known = refresh.last_known(self._origin.directory)
            await self._begin(known)
            return self.catalog

    async def _begin(self, known: Catalog | None) -> None:
        """Have a fresh catalog, else the *known* one.

        Raises: TrustError, FetchError: there is none.
        """
        deadline_s = self._settings.refresh_deadline_s if known is None else self._settings.start_grace_s
        try:
            self.catalog = await self._fetch(known, deadline_s)
            self._mark = refresh.mark(self._origin.directory)
        except TorrentfsError as error:
            # An expired one was signed by the right keys.
            if known is None and isinstance(error, TrustError) and not isinstance(error, ExpiredError):
                raise TrustError(f"{error}; is {self._origin.trust} this repository's root.json?") from error
            if known is None:
                raise
            self.doubt = f"starting with the last known catalog, version {known.version}: {error}"
            log.warning("%s", self.doubt)
            self.catalog = known

    def resume(self, catalog: Catalog) -> None:
        """Go on with *catalog*, which a predecessor showed; it may have kept a newer one since."""
        self.catalog = catalog

    async def keep(self, show: Show) -> None:
        """Ask for a newer catalog every refresh interval and *show* it, until cancelled; then it is over."""
        try:
            if self._mark is None:
                await self._check_in_peace(show)
            while True:
                await trio.sleep(self._settings.refresh_interval_s)
                await self._check_in_peace(show)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                for source in self._sources:
                    await source.mirror.close()

    async def check(self, show: Show) -> bool:
        """Ask for a newer catalog now, *show* it if there is one, and tell whether there was.

        Raises: TrustError, FetchError: the known one stays.
        """
        async with self._one_at_a_time:
            # What is kept on disk may be newer than what is shown: showing it failed or was cancelled, or
            # another mount of the same repository asked for it.
            directory, mark = self._origin.directory, self._mark
            is_shown = mark is not None and mark == refresh.mark(directory)
            known = self.catalog if is_shown else refresh.last_known(directory)
            self._mark = None
            catalog = await self._fetch(known, self._settings.refresh_deadline_s)
            changed = catalog != self.catalog
            if changed:
                await show(catalog)
                self.catalog = catalog
                log.info("showing catalog version %d", catalog.version)
            self._mark = refresh.mark(directory)
            return changed

    async def _check_in_peace(self, show: Show) -> None:
        """Ask for a newer catalog; a failure is logged and no more."""
        try:
            await self.check(show)
            self._fails = False
        except TorrentfsError as error:
            # Once an outage, not once a minute: `age_s` says how long it lasts.
            if not self._fails:
                log.warning("the catalog stays at version %d: %s", self.catalog.version, error)
            self._fails = True
        except Exception:
            log.exception("the catalog stays at version %d for a fault of ours", self.catalog.version)

    async def _fetch(self, known: Catalog | None, deadline_s: float) -> Catalog:
        """Return *known* if the repository has nothing newer, else what it has, verified.

        Mirrors are asked one after the other until one has it; each gets its share of the time that is left.

        Raises: TrustError, FormatError, FetchError, DeadlineError: of the first mirror, or the first that
        nobody may trust. CacheError.
        """
        deadline = trio.current_time() + deadline_s
        sources = sorted(self._sources, key=lambda source: source.last_until > trio.current_time())
        failures: list[TorrentfsError] = []
        for left, source in zip(range(len(sources), 0, -1), sources, strict=True):
            try:
                catalog = await self._ask(source, known, (deadline - trio.current_time()) / left)
            except CacheError:
                raise
            except TorrentfsError as error:
                # One that has been left behind, or sends rubbish, is no better than one that is silent.
                source.last_until = trio.current_time() + ASIDE_S
                failures.append(error)
            else:
                self._confirm()
                return catalog
        raise next((error for error in failures if isinstance(error, TrustError)), failures[0])

    async def _ask(self, source: _Source, known: Catalog | None, patience_s: float) -> Catalog:
        """Return *known* if a mirror has nothing newer, else what it has, verified.

        Raises: TrustError, FormatError, FetchError, DeadlineError, CacheError.
        """
        directory, deadline = self._origin.directory, trio.current_time() + patience_s
        try:
            with trio.fail_at(deadline):
                unchanged = known is not None and await refresh.unchanged(source.mirror, directory)
        except trio.TooSlowError:
            raise DeadlineError(f"{source.url} did not answer within {patience_s:.3g} s") from None
        if known is not None and unchanged:
            return known
        left_s = max(deadline - trio.current_time(), REFRESH_TIME_MIN_S)
        return await refresh.refresh(source.url, directory, self._origin.trust, left_s)

    def _confirm(self) -> None:
        """Note that the catalog is current."""
        # A full disk costs the figure of `stats`, not the mount.
        with suppress(OSError):
            self._confirmation.touch()

    @property
    def _confirmation(self) -> Path:
        """The file whose mtime says when the catalog was last confirmed."""
        return self._origin.directory / "confirmed"
