"""This module finds out that no source can be reached, and that one can again, so that nobody waits in vain.

A read is patient: sources come back. But one whose mirrors have all been out of reach for longer than it may
wait, with no peer connected, ends at once. Whether they still are is asked every few seconds, by the node and
not by its readers, while somebody wants something.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from torrentfs.node.mirrors import Mirror, MirrorError
from torrentfs.node.tasks import Tasks

_LOG = logging.getLogger(__name__)

PROBE_INTERVAL_S = 2.0
PROBE_DEADLINE_S = 3.0
PROBE_LENGTH_MAX = 1 << 20
PROBE_PATH = "metadata/timestamp.json"
"""What every mirror has; that one has it not is an answer too."""
KNOWN_S = 10.0
"""For how long what a probe told is believed."""


@dataclass(eq=False, slots=True)
class _Reading:
    mirrors: Sequence[Mirror]
    may_peers: Callable[[], bool]
    scope: trio.CancelScope
    patience_s: float


class Outage:
    """Those who read from sources that may be out of reach."""

    def __init__(self, tasks: Tasks, recovered: Callable[[], None]) -> None:
        """*recovered* is called when a mirror can be reached again."""
        self._tasks = tasks
        self._recovered = recovered
        self._readings: set[_Reading] = set()
        self._probing: set[Mirror] = set()
        self._is_watching = False

    @contextmanager
    def reading(
        self, mirrors: Sequence[Mirror], may_peers: Callable[[], bool], deadline: float
    ) -> Iterator[trio.CancelScope]:
        """Cancel what is inside at *deadline*, trio's time, or once it is known that nothing will come:
        *may_peers* tells whether peers may bring it.
        """
        patience_s = deadline - trio.current_time()
        with trio.CancelScope(deadline=deadline) as scope:
            one = _Reading(mirrors, may_peers, scope, patience_s)
            self._readings.add(one)
            try:
                self._look(one)
                if not self._is_watching:
                    self._is_watching = True
                    self._tasks.start(self._watch)
                yield scope
            finally:
                self._readings.discard(one)

    async def _watch(self) -> None:
        """Look now and then, as long as anybody reads."""
        try:
            while self._readings:
                await trio.sleep(PROBE_INTERVAL_S)
                self._look_at_all()
        finally:
            self._is_watching = False

    def _look_at_all(self) -> None:
        for one in list(self._readings):
            self._look(one)

    def _look(self, one: _Reading) -> None:
        """End a read that cannot succeed, as far as is known; find out more."""
        now, is_hopeless = trio.current_time(), bool(one.mirrors)
        for mirror in one.mirrors:
            if mirror.down_since is None:
                return
            if now - mirror.probed_at > PROBE_INTERVAL_S and mirror not in self._probing:
                self._probing.add(mirror)
                self._tasks.start(self._probe, mirror)
            is_known = now - mirror.probed_at <= KNOWN_S
            is_hopeless = is_hopeless and is_known and now - mirror.down_since >= one.patience_s
        if is_hopeless and not one.may_peers():
            one.scope.cancel()

    async def _probe(self, mirror: Mirror) -> None:
        try:
            with trio.move_on_after(PROBE_DEADLINE_S):
                await mirror.whole(PROBE_PATH, PROBE_LENGTH_MAX)
                mirror.reached()
        except MirrorError as error:
            if not error.unreachable:
                mirror.reached()
        finally:
            mirror.probed_at = trio.current_time()
            self._probing.discard(mirror)
        if mirror.down_since is None:
            _LOG.info("%s can be reached again", mirror.base)
            self._recovered()
        self._look_at_all()
