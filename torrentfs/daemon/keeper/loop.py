"""This module waits for servers, signals and deadlines, and has the keeper do what they ask for."""

import os
import select
import time

from torrentfs.daemon.keeper.keeper import Keeper
from torrentfs.daemon.keeper.lines import log
from torrentfs.daemon.keeper.server import NEVER, Server

MESSAGES_AT_A_TIME = 512
"""More than a socket's buffer takes (278): all that a dead server said. A flood keeps us from nothing."""
WAIT_MAX_S = 60.0
LATE_S = 1.0
LOOK_INTERVAL_S = 0.25


class Loop:
    """One turn after the other, whatever happens; signals are written to *wakeup*."""

    def __init__(self, keeper: Keeper, wakeup: int) -> None:
        self.keeper = keeper
        self.wakeup = wakeup

    def run(self) -> int:
        """Keep until there is nothing left to serve; return the exit code."""
        while self.keeper.exit_code is None:
            try:
                self.turn()
            except Exception as error:
                # Whatever it is, what we hold stays held.
                log(f"the keeper failed, and goes on: {error!r}")
                time.sleep(0.1)
        for server in self.keeper.servers():
            server.kill("")
        return self.keeper.exit_code

    def turn(self) -> None:
        """Wait for something to happen, and do what it asks for."""
        keeper, servers = self.keeper, self.keeper.servers()
        happened = self.wait(servers)
        for server in servers:
            self.heed(server)
        self.reap(servers)
        for server in servers:
            if server.pidfd.number in happened:
                keeper.bury(server)
        if self.wakeup in happened:
            keeper.end()
            os.read(self.wakeup, 512)
        now = time.monotonic()
        for server in keeper.servers():
            self.look_after(server, now)
        if now >= keeper.end_at and keeper.exit_code is None:
            log(f"the server did not end within {keeper.options.end_deadline_s:g} s")
            keeper.exit_code = 1
        if now >= self.start_at():
            keeper.start()

    def start_at(self) -> float:
        keeper = self.keeper
        has_server = keeper.current or keeper.candidate or keeper.exit_code is not None
        return NEVER if has_server else keeper.start_at

    def wait(self, servers: list[Server]) -> set[int]:
        """Wait, at most until something is due; return the descriptors at which something happened."""
        poll = select.poll()
        for number in (self.wakeup, *(server.pidfd.number for server in servers)):
            poll.register(number, select.POLLIN)
        channels = [self.keeper.store.manager, *(server.channel for server in servers)]
        for channel in channels:
            if channel.is_heard or channel.waiting:
                writable = select.POLLOUT if channel.waiting else 0
                poll.register(channel.socket.fileno(), select.POLLIN | writable)
        due = [server.deadline for server in servers] + [server.look_at for server in servers]
        before = time.monotonic()
        timeout_s = min(max(min(*due, self.keeper.end_at, self.start_at()) - before, 0.0), WAIT_MAX_S)
        # Rounded up, or the last millisecond is spent looking.
        happened = {number for number, _ in poll.poll(int(timeout_s * 1000) + 1)}
        late_s = time.monotonic() - before - timeout_s
        for server in servers if late_s > LATE_S else ():
            server.deadline += late_s  # who stopped us (a freezer, Ctrl-Z) stopped the servers too
        for channel in channels:
            channel.flush()
        return happened

    def heed(self, server: Server) -> None:
        """Do what *server* asks for."""
        if not server.channel.is_heard:
            return
        for _ in range(MESSAGES_AT_A_TIME):
            if not (message := server.channel.receive()):
                break
            self.keeper.hear(server, *message)
        if not server.channel.is_heard and server.phase not in {"leaving", "killed"}:
            server.enter("alone")

    def reap(self, servers: list[Server]) -> None:
        """Note the exit codes of dead servers; as a container's first process we are others' parent too."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for server in servers:
                    if server.pid == ended[0]:
                        server.code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            pass  # there is none

    def look_after(self, server: Server, now: float) -> None:
        """End *server* if its time is over, or if it is dead but for a thread."""
        if now < server.deadline:
            if now >= server.look_at:
                server.look_at = now + LOOK_INTERVAL_S
                if server.is_half_dead():
                    server.kill("was killed, and cannot die")
        elif server.phase == "killed":
            log("a killed server does not die; it is left alone")
            self.keeper.bury(server)
        else:
            server.kill(server.overdue)
