"""This module is the server's process, whose mounts outlive it: started, paused and ended by its keeper."""

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from torrentfs import __version__
from torrentfs.daemon.holdings import Holdings
from torrentfs.daemon.keeping import Keeping, Leave, Resume, Start, Suspend, Word
from torrentfs.daemon.kept import KeptMount, held_mounts
from torrentfs.daemon.lifetime import first_of
from torrentfs.daemon.limits import raise_files
from torrentfs.daemon.logfile import start_log
from torrentfs.daemon.programs import server_command
from torrentfs.daemon.request import CONFIG, in_memory, offers_of
from torrentfs.daemon.runtime import key_of
from torrentfs.daemon.serving import make_directory
from torrentfs.daemon.shift import Shift
from torrentfs.errors import CacheError, ControlError, TorrentfsError, UsageError
from torrentfs.fuse.turns import Turns
from torrentfs.node import swarm as _swarm  # noqa: F401 - takes long, and others serve until it is done

log = logging.getLogger(__name__)

RESUME_DEADLINE_S = 10.0
RESUME_INTERVAL_S = 0.1


class Server:
    """One server of a keeper: a shift of serving, or another after a reload that failed."""

    def __init__(self, keeping: Keeping, start: Start, turns: Turns) -> None:
        self._keeping = keeping
        self._start = start
        self._turns = turns
        self._holdings = Holdings(keeping, start.held)
        self._shift: Shift | None = None
        self._is_ready = False
        self._is_reloading = False
        self._refusals: list[str] = []

    @property
    def is_well(self) -> bool:
        """Whether every mount gets on."""
        return self._shift is None or self._shift.is_well

    async def live(self) -> int:
        """Serve until there is nothing left to serve, or another does; return the exit code."""
        try:
            return await self._serve()
        except Exception as failure:
            return self._fail(first_of(failure))

    def note_keeper(self) -> None:
        """Note that there is another keeper."""
        for mount in self._shift.mounts if self._shift else ():
            mount.note(self._keeping.keeper_pid)

    async def _serve(self) -> int:
        while True:
            mounts = held_mounts(self._holdings, self._turns)
            if not mounts:  # a predecessor died when it had just ended the last one
                self._keeping.done()
                return 0
            words = {"server": self._tell, "reload": self._reload}
            shift = self._shift = Shift(mounts, self._holdings, self._turns, self._figures, words)
            if not self._is_ready:
                self._start_log(shift)
            word = await self._work_when_alone(shift)
            if isinstance(word, Suspend):
                self._keeping.suspended()
                word = await self._keeping.word()
            match word:
                case Leave():
                    return 0
                case Resume(reason):
                    self._refuse(reason)
                case _:
                    shift.end()
                    self._keeping.done()
                    return 0

    async def _work_when_alone(self, shift: Shift) -> Word | None:
        """Do a shift; one that resumes may have to wait for a successor that failed to let go of all."""
        deadline = trio.current_time() + RESUME_DEADLINE_S
        while True:
            try:
                return await self._work(shift)
            except Exception as failure:
                is_taken = isinstance(first_of(failure), CacheError)
                if not (self._is_ready and is_taken) or trio.current_time() > deadline:
                    raise
            await trio.sleep(RESUME_INTERVAL_S)

    def _start_log(self, shift: Shift) -> None:
        make_directory(shift.cache)
        length_max = shift.mounts[0].request.configuration.mount.log_bytes_max
        foreground = self._start.is_foreground
        start_log(shift.cache, length_max, foreground=foreground, opened=self._keeping.log_to)

    async def _work(self, shift: Shift) -> Word | None:
        """Do a shift until the keeper wants something else; return what, None if nothing is left to serve."""
        # Of what was served before, as much as possible is; but a reload succeeds as a whole, or not at all.
        patiently = not self._start.is_successor and any(mount.is_mounted for mount in shift.mounts)
        patiently = patiently or self._is_ready
        wanted: list[Word] = []

        async def listen() -> None:
            while isinstance(word := await self._keeping.word(), Resume):
                self._refuse(word.reason)
            wanted.append(word)
            nursery.cancel_scope.cancel()

        async def work(task_status: trio.TaskStatus[str]) -> None:
            await shift.work(patiently=patiently, task_status=task_status)
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                notice = str(await nursery.start(work))
                if not self._is_ready:
                    self._keeping.ready(notice)
                self._is_ready = True
                self._keeping.serving()
        except Exception:
            if not patiently and not self._start.is_successor:
                shift.end()
            raise
        return wanted[0] if wanted else None

    def _fail(self, error: BaseException) -> int:
        """Say why this server ends; return the exit code."""
        if isinstance(error, TorrentfsError):
            text = str(error)
            log.error("%s", text)
        else:
            text = f"the daemon failed, its log says more: {error!r}"
            log.error("the daemon failed", exc_info=error)
        used_wrongly = isinstance(error, UsageError)
        if not self._is_ready:
            self._keeping.failed(text, used_wrongly=used_wrongly)
            if self._start.is_foreground:
                print(f"torrentfs: {' '.join(text.split())}", file=sys.stderr)
        return 2 if used_wrongly else 1

    # What may be asked

    @property
    def _committed(self) -> list[KeptMount]:
        return [mount for mount in self._shift.mounts if mount.is_committed] if self._shift else []

    def _figures(self) -> dict[str, Any]:
        """Return what `stats` says of the processes."""
        return {
            "pid": os.getpid(),
            "keeper": self._keeping.keeper_pid,
            "restarts": self._start.restarts,
            "last_end": self._start.reason,
        }

    async def _tell(self, _: object) -> dict[str, Any]:
        """Return what a reload needs to know."""
        return {
            **self._figures(),
            "torrentfs": __version__,
            "requests": [mount.request for mount in self._committed],
            "refusals": self._refusals,
        }

    async def _reload(self, given: object) -> None:
        """Have a successor started that serves the requests *given* (`request.offers`) instead of ours.

        Raises: UsageError, ControlError.
        """
        requests = offers_of(given)
        ours = [str(mount.mountpoint) for mount in self._committed]
        if list(requests) != ours:
            raise ControlError("mounts came or went meanwhile: reload again")
        if self._is_reloading:
            raise ControlError("another reload is under way")
        self._is_reloading = True
        offers = {
            f"{key_of(Path(mountpoint))}.{CONFIG}": in_memory(CONFIG, request.encode())
            for mountpoint, request in requests.items()
        }
        self._keeping.reload(offers)
        for descriptor in offers.values():
            os.close(descriptor)

    def _refuse(self, reason: str) -> None:
        log.warning("no other server serves in place of this one: %s", reason)
        self._is_reloading = False
        self._refusals.append(reason)


async def _main(descriptor: int, turns: Turns) -> int:
    keeping = Keeping(descriptor, server_command())
    start = await keeping.prepared()
    token = trio.lowlevel.current_trio_token()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        # Whoever ends the server so means all of it: the keeper would start another.
        signal.signal(number, lambda *_: token.run_sync_soon(keeping.end))
    server = Server(keeping, start, turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keeping.run, lambda: server.is_well, server.note_keeper))
        code = await server.live()
        nursery.cancel_scope.cancel()
    return code


def main() -> int:
    """Be a server: `--keeper DESCRIPTOR`; return the exit code."""
    # Nobody's terminal. Not SIG_IGN, which our children would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    raise_files()
    turns = Turns()
    return trio.run(_main, int(sys.argv[2]), turns, instruments=[turns])


if __name__ == "__main__":
    sys.exit(main())
