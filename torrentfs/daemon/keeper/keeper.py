"""This module decides which server serves, which comes next, and what each is told; it waits for nobody."""

import os
import time

from torrentfs.daemon.keeper.channel import Descriptor
from torrentfs.daemon.keeper.lines import as_json, log, tell
from torrentfs.daemon.keeper.options import HELD_MAX, Options, is_name
from torrentfs.daemon.keeper.server import NEVER, Server, spawn
from torrentfs.daemon.keeper.store import Store


class Keeper:
    """The server that serves, the one that is to, those that have a successor; and what is held for them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.store = Store()
        self.current: Server | None = None
        self.candidate: Server | None = None
        self.left: list[Server] = []
        self.was_ready = self.is_told = False  # any one; whoever started us
        self.restarts = 0
        self.last_reason = ""
        self.failures = 0  # in a row
        self.start_at = 0.0
        self.end_at = NEVER
        self.exit_code: int | None = None

    def servers(self) -> list[Server]:
        return [server for server in (self.current, self.candidate, *self.left) if server]

    def start(self) -> None:
        """Start a candidate."""
        try:
            self.candidate = spawn(self.options)
        except OSError as error:
            self.go_on(f"cannot be started: {error}")

    def adopt(self, server: Server) -> None:
        """Take up the one that started us, as its keeper died; it says `ready` again at once if it is."""
        server.enter("starting")
        self.candidate, self.was_ready = server, True

    def hear(self, server: Server, word: str, rest: str, descriptor: Descriptor | None) -> None:
        """Do what one message asks for; who has a successor has nothing to ask for."""
        server.look_at = time.monotonic() + self.options.watchdog_s / 3  # one `alive` is late
        if server.phase == "serving":
            server.enter("serving")
        match word:
            case _ if server in self.left:
                pass
            case "hold" | "offer" | "drop" if self.is_in_order(word, rest, descriptor):
                self.keep(rest, descriptor, is_offer=word == "offer" or server is self.candidate)
            case "prepared" if server.phase == "preparing":
                server.enter("waiting")
                self.advance()
            case "ready" if server.phase in {"starting", "ending"} and server is self.candidate:
                self.on_ready(server, rest)
            case "failed" if server.phase in {"preparing", "waiting", "starting"}:
                self.tell_starter(rest)
                server.reason, server.stderr = rest or "it failed, and did not say why", None
                server.enter("leaving")
            case "reload" if server.phase == "serving" and not self.candidate and self.end_at == NEVER:
                self.start()
            case "suspended" if server.phase == "suspending":
                server.enter("suspended")
                self.advance()
            case "done" if server.phase not in {"preparing", "waiting"} and not server.is_done:
                server.is_done = True
                server.enter("leaving")
            case "log" if descriptor:
                self.write_to(descriptor)
            case "alive" | "suspended" | "reload":
                pass  # the second crossed `resume`, the third comes twice
            case _ if not server.has_babbled:  # one line is enough: maybe a later version speaks
                server.has_babbled = True
                log(f"the server said what cannot be heeded: {f'{word} {rest}'[:200]!r}")

    def write_to(self, descriptor: Descriptor) -> None:
        """Have what we say go where the server's log goes; in the foreground, it is the admin's to read."""
        if not self.options.foreground:
            os.dup2(descriptor.number, 2, inheritable=False)

    def is_in_order(self, word: str, name: str, descriptor: Descriptor | None) -> bool:
        has_room = len({*self.store.held, *self.store.offers, name}) <= HELD_MAX
        return is_name(name) and (descriptor is None) == (word == "drop") and has_room

    def keep(self, name: str, descriptor: Descriptor | None, *, is_offer: bool) -> None:
        # What a candidate holds counts when it is ready, if an old one may have to go on until then.
        if is_offer and self.current:
            self.store.offers[name] = descriptor
        else:
            self.store.hold(name, descriptor)
            if not descriptor:
                self.store.offers.pop(name, None)  # what was offered for it is of no use any more

    def advance(self) -> None:
        """Let the candidate begin once it is prepared, and nobody else uses what it needs."""
        if not self.candidate or self.candidate.phase != "waiting":
            return
        if not self.current or self.current.phase == "suspended":
            self.begin(self.candidate)
        elif self.current.phase == "serving":
            self.current.channel.say("suspend")
            self.current.enter("suspending")

    def begin(self, server: Server) -> None:
        """Give *server* what is held, and let it start."""
        for name, descriptor in (self.store.held | self.store.offers).items():
            if descriptor:
                server.channel.say(f"held {name}", descriptor)
        if self.restarts:
            server.channel.say(f"restarts {self.restarts} {self.last_reason}")
        if self.current:
            server.channel.say("successor")
        server.channel.say(f"start {' '.join(self.options.again)}")
        server.enter("starting")
        self.tell_end(server)

    def on_ready(self, server: Server, rest: str) -> None:
        """Have the candidate serve in place of whoever did."""
        self.store.settle(succeeded=True)
        if self.current:
            self.current.channel.say("leave")
            self.current.enter("leaving")
            self.left.append(self.current)
        self.current, self.candidate = server, None
        server.ready_at, server.stderr = time.monotonic(), None
        if server.phase == "starting":
            server.enter("serving")
        if not self.was_ready:
            self.was_ready = True
            self.store.manager.say("READY=1")
            self.tell_starter(rest)

    def bury(self, server: Server) -> None:
        """Go on after the death of *server*."""
        if server in self.left:
            return self.left.remove(server)
        if server is self.candidate:
            self.candidate = None
        else:
            self.current = None
        if server.is_done:
            return self.finish()
        is_steady = time.monotonic() - server.ready_at >= self.options.steady_s
        return self.go_on(server.how_it_ended(), code=max(server.code or 1, 1), is_steady=is_steady)

    def go_on(self, reason: str, *, code: int = 1, is_steady: bool = False) -> None:
        """Go on with whom there is left."""
        if self.candidate:
            log(f"the server ended: {reason}")
            return self.advance()
        self.store.settle(succeeded=False)
        if self.current:
            log(f"the new server could not start: {reason}")
            self.resume(self.current, reason)
        elif self.was_ready:
            self.restart(reason, is_steady=is_steady)
        else:
            if not self.is_told:
                log(f"the daemon ended before it was ready: {reason}")
            self.exit(code, f": {reason}")
        return None

    def resume(self, server: Server, reason: str) -> None:
        """Let the old server serve on, as there is no new one."""
        if server.phase in {"serving", "suspending", "suspended"}:
            server.channel.say(f"resume {reason}")
            server.enter("serving")
            self.tell_end(server)

    def restart(self, reason: str, *, is_steady: bool) -> None:
        """Have a server started, in a while if many did not get far."""
        self.failures = 0 if is_steady else self.failures + 1
        if self.end_at < NEVER and self.failures > 1:
            log(f"no server can end what is served: {reason}")
            return self.finish(code=1)
        doubled_s = self.options.delay_s * 2 ** min(self.failures - 2, 32)
        delay_s = min(doubled_s, self.options.delay_max_s) if self.failures > 1 else 0.0
        self.restarts += 1
        self.last_reason = reason
        self.start_at = time.monotonic() + delay_s
        log(f"the server ended: {reason}; starting it again in {delay_s:g} s, for the {self.restarts}. time")
        return None

    def finish(self, code: int = 0) -> None:
        """End: there is nothing left to serve, or nobody to serve it."""
        for name in list(self.store.held):
            self.store.hold(name, None)
        self.exit(code)

    def end(self) -> None:
        """Have all ended, in bounded time."""
        if self.end_at < NEVER:
            return
        self.end_at = time.monotonic() + self.options.end_deadline_s
        self.start_at = 0.0
        self.store.manager.say("STOPPING=1")
        if self.candidate and self.current:
            self.candidate.kill("the keeper was told to end")  # the old server is told at its death
        else:
            for server in self.servers():
                self.tell_end(server)

    def tell_end(self, server: Server) -> None:
        """Tell *server* if that is what we were told."""
        if self.end_at < NEVER and server.phase in {"starting", "serving"}:
            server.channel.say("end")
            server.enter("ending")

    def tell_starter(self, line: str) -> None:
        """Tell whoever started us; in the foreground, all is seen."""
        if not self.is_told and not self.options.foreground:
            tell(line)
        self.is_told = True

    def exit(self, code: int, reason: str = "") -> None:
        error = as_json(f"the daemon ended before it was ready{reason}")
        self.tell_starter(f'{{"ready": false, "error": {error}, "used_wrongly": false}}')
        self.exit_code = code
