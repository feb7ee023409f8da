"""The keeper, as a process, with servers that do as the test says (`keepers`)."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from keepers import DEADLINE_S, PUPPET, Kept, Puppet, content, kept, memory, private_kb

from torrentfs.daemon.keeper import HELD_MAX
from torrentfs.daemon.keeper.channel import Channel, Descriptor
from torrentfs.daemon.keeper.keeper import Keeper
from torrentfs.daemon.keeper.loop import Loop
from torrentfs.daemon.keeper.options import Options
from torrentfs.daemon.keeper.server import Server
from torrentfs.daemon.keeping import keeper_command

EAGER = ("--delay", "0.001", "--steady", "0")
"""Starts servers again at once, as far as that is not what is tested."""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Kept]:
    with kept(tmp_path, *EAGER) as keeper:
        yield keeper


def hold(server: Puppet, name: str, text: str, word: str = "hold") -> None:
    """Have the keeper hold a file in memory."""
    descriptor = memory(text)
    server.say(f"{word} {name}", descriptor)
    os.close(descriptor)


def delay(keeper: Kept) -> str:
    """Return how long the next start is said to be put off."""
    return keeper.await_line("starting it again").split(" in ")[1].split(",")[0]


class TestLog:
    def test_what_it_has_to_say_goes_where_the_server_says(self, keeper: Kept, tmp_path: Path) -> None:
        server = keeper.ready_server()
        with (tmp_path / "log").open("a") as file:
            server.say("log", file.fileno())
        server.kill()
        keeper.ready_server()

        assert "the server ended: killed by SIGKILL" in (tmp_path / "log").read_text()
        assert keeper.stderr.line() == ""

    def test_in_the_foreground_it_stays_the_admins(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--foreground") as keeper:
            server = keeper.ready_server()
            with (tmp_path / "log").open("a") as file:
                server.say("log", file.fileno())
            server.kill()

            assert keeper.await_line("the server ended: killed by SIGKILL")


class TestFirstStart:
    def test_who_started_it_hears_that_the_server_is_ready_and_then_no_more(self, keeper: Kept) -> None:
        server = keeper.server()

        held, others = server.get_ready("all is well")

        assert (held, others) == ({}, [])
        assert json.loads(keeper.stdout.line()) == {"ready": True, "notice": "all is well"}
        assert keeper.stdout.line() == ""
        assert keeper.process.poll() is None

    def test_what_it_is_given_reaches_the_server(self, tmp_path: Path) -> None:
        given = {"a.config": memory("first"), "node": memory("second")}

        with kept(tmp_path, held=given) as keeper:
            held, _ = keeper.server().begin()

        assert held == {"a.config": "first", "node": "second"}

    def test_a_failure_is_passed_on_and_ends_it_with_the_code_of_the_server(self, keeper: Kept) -> None:
        server = keeper.server()
        server.begin()

        server.say('failed {"ready": false, "error": "no", "used_wrongly": true}')
        server.exit(2)

        assert json.loads(keeper.stdout.line()) == {"ready": False, "error": "no", "used_wrongly": True}
        assert keeper.end() == 2

    def test_the_last_line_of_one_that_dies_is_the_reason(self, keeper: Kept) -> None:
        server = keeper.server()

        server.print('Traceback\nImportError: no module "ünknown"\n\n')
        server.exit(3)

        assert json.loads(keeper.stdout.line()) == {
            "ready": False,
            "error": "the daemon ended before it was ready: it exited with code 3: "
            'ImportError: no module "ünknown"',
            "used_wrongly": False,
        }
        assert keeper.end() == 3

    def test_one_that_is_killed_and_said_nothing_is_a_failure_too(self, keeper: Kept) -> None:
        keeper.server().kill()

        assert "ended before it was ready: killed by SIGKILL" in json.loads(keeper.stdout.line())["error"]
        assert keeper.end() == 1

    def test_one_that_exits_well_before_it_is_ready_is_a_failure(self, keeper: Kept) -> None:
        keeper.server().exit(0)

        assert "it exited with code 0" in json.loads(keeper.stdout.line())["error"]
        assert keeper.end() == 1

    def test_in_the_foreground_the_end_of_one_that_said_nothing_is_logged(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--foreground") as keeper:
            keeper.server().kill()

            assert keeper.await_line("ended before it was ready: killed by SIGKILL")
            assert keeper.end() == 1
            assert keeper.stdout.line() == ""

    def test_a_server_that_cannot_be_run_is_a_failure(self, tmp_path: Path) -> None:
        with kept(tmp_path, command=["/nowhere/server"]) as keeper:
            assert "cannot be started" in json.loads(keeper.stdout.line())["error"]
            assert keeper.end() == 1

    def test_one_that_is_not_ready_in_time_is_killed(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--start-deadline", "0.05") as keeper:
            keeper.server().await_end()

            assert "was not ready within 0.05 s" in json.loads(keeper.stdout.line())["error"]
            assert keeper.end() == 1

    def test_in_the_foreground_the_server_has_our_standard_error(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--foreground") as keeper:
            server = keeper.server()
            server.get_ready()

            server.print("to be seen\n")

            assert keeper.await_line("to be seen")

    def test_its_own_standard_error_is_not_the_one_of_a_server_in_the_background(self, keeper: Kept) -> None:
        server = keeper.ready_server()

        server.print("not to be seen\n")
        server.kill()

        assert "killed by SIGKILL" in keeper.stderr.line()

    def test_a_flood_on_standard_error_is_bounded(self, keeper: Kept) -> None:
        server = keeper.server()

        while server.print("x" * 60_000):
            pass
        server.exit(1)

        assert json.loads(keeper.stdout.line())["error"].endswith("x" * 1000)

    @pytest.mark.parametrize(
        "arguments", [[], ["--"], ["--delay"], ["--nonsense", "--", "x"], ["a/b=1", "--", "x"]]
    )
    def test_a_wrong_command_line_is_refused(self, arguments: list[str]) -> None:
        ended = subprocess.run(
            [*keeper_command(), *arguments], check=False, capture_output=True, timeout=DEADLINE_S
        )

        assert ended.returncode == 2
        assert ended.stderr.startswith(b"torrentfs keeper: ")


class TestRestart:
    def test_a_killed_server_gets_a_successor_with_the_same_descriptors(self, keeper: Kept) -> None:
        first = keeper.server()
        first.begin()
        hold(first, "a", "old")
        hold(first, "b", "dropped")
        hold(first, "a", "new")
        first.say("drop b")
        first.say("ready {}")

        first.kill()
        held, others = keeper.server().begin()

        assert held == {"a": "new"}
        assert others == ["restarts 1 killed by SIGKILL"]

    def test_the_descriptor_itself_comes_back_not_a_copy(self, keeper: Kept) -> None:
        first = keeper.ready_server()
        shared = memory("before")
        first.say("hold a", shared)

        first.kill()
        os.pwrite(shared, b"after!", 0)

        assert keeper.server().begin()[0] == {"a": "after!"}

    @pytest.mark.parametrize("end", ["kill", "exit", "segfault"])
    def test_each_restart_is_counted_and_explained(self, keeper: Kept, end: str) -> None:
        server = keeper.ready_server()

        if end == "exit":
            server.exit(7)
        else:
            server.kill(signal.SIGKILL if end == "kill" else signal.SIGSEGV)
        _, others = keeper.server().get_ready()

        how = {"kill": "killed by SIGKILL", "exit": "it exited with code 7", "segfault": "killed by SIGSEGV"}
        assert others == [f"restarts 1 {how[end]}"]
        assert how[end] in keeper.await_line("starting it again")

    def test_a_later_one_that_fails_is_started_again(self, keeper: Kept) -> None:
        keeper.ready_server().kill()
        second = keeper.server()
        second.begin()

        second.say('failed {"error": "no network"}')
        second.exit(1)

        assert keeper.server().begin()[1] == ['restarts 2 {"error": "no network"}']

    def test_a_later_one_that_dies_early_says_why_in_its_last_line(self, keeper: Kept) -> None:
        keeper.ready_server().kill()
        second = keeper.server()

        second.print("ImportError: gone\n")
        second.exit(1)

        assert keeper.server().begin()[1] == ["restarts 2 it exited with code 1: ImportError: gone"]

    def test_a_hundred_kills_lose_nothing(self, keeper: Kept) -> None:
        hold(keeper.ready_server(), "a", "kept")

        for _ in range(100):
            keeper.puppets[-1].kill()
            held, _ = keeper.server().get_ready()

        assert held == {"a": "kept"}
        assert keeper.descriptor_count() < 16

    def test_what_a_server_said_before_it_died_counts(self, keeper: Kept) -> None:
        server = keeper.ready_server()
        keeper.process.send_signal(signal.SIGSTOP)
        for number in range(50):
            hold(server, f"n{number}", str(number))
        server.kill()
        server.await_end()

        keeper.process.send_signal(signal.SIGCONT)

        assert keeper.server().begin()[0] == {f"n{number}": str(number) for number in range(50)}

    def test_one_that_closes_its_connection_is_replaced(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--grace", "0.1") as keeper:
            server = keeper.ready_server()

            server.channel.close()
            server.await_end()

            assert keeper.server().begin()[1] == [
                "restarts 1 closed its connection to the keeper, and did not exit within 0.1 s"
            ]

    def test_the_delay_doubles_up_to_its_bound(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--delay", "0.001", "--delay-max", "0.005", "--steady", "1000") as keeper:
            keeper.ready_server().kill()
            delays = [delay(keeper)]
            for _ in range(5):
                keeper.server().kill()
                delays.append(delay(keeper))

        assert delays == ["0 s", "0.001 s", "0.002 s", "0.004 s", "0.005 s", "0.005 s"]

    def test_a_steady_one_resets_the_delay(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--delay", "0.001", "--steady", "0.01") as keeper:
            keeper.ready_server().kill()
            for _ in range(3):
                keeper.server().kill()
            steady = keeper.ready_server()
            keeper.await_line("0.004 s")
            time.sleep(0.05)  # it is to have been ready for so long, at least

            steady.kill()

            assert delay(keeper) == "0 s"

    def test_one_that_is_not_ready_in_time_is_replaced(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--start-deadline", "2") as keeper:
            keeper.ready_server().kill()
            keeper.server().begin()

            assert keeper.server().begin()[1] == ["restarts 2 was not ready within 2 s"]


class TestWatchdog:
    def test_a_server_that_stands_still_is_replaced(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--watchdog", "0.2") as keeper:
            keeper.ready_server().kill(signal.SIGSTOP)

            assert keeper.server().begin()[1] == ["restarts 1 gave no sign of life for 0.2 s"]

    def test_one_that_says_that_it_lives_is_not(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--watchdog", "2") as keeper:
            server = keeper.ready_server()

            for _ in range(30):
                time.sleep(0.1)  # longer than the watchdog's time in all
                server.say("alive")
            hold(server, "a", "by the first")
            server.kill()

            assert keeper.server().begin() == ({"a": "by the first"}, ["restarts 1 killed by SIGKILL"])

    def test_a_keeper_that_was_stopped_blames_nobody_for_that_time(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--watchdog", "1.5") as keeper:
            server = keeper.ready_server()
            keeper.process.send_signal(signal.SIGSTOP)
            server.kill(signal.SIGSTOP)
            time.sleep(3)  # more than a second late is a stop, not a slow machine

            keeper.process.send_signal(signal.SIGCONT)
            server.kill(signal.SIGCONT)
            server.say("alive")
            server.kill()

            assert keeper.server().begin()[1] == ["restarts 1 killed by SIGKILL"]


@pytest.fixture
def half_dead(tmp_path: Path) -> Iterator[Callable[[str], Kept]]:
    """Have the first server killed, as said, without dying: its pidfd is silent, its leader a zombie.

    So is one with a thread in uninterruptible sleep. Here a thread's tracer, this process, does not reap it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    script = tmp_path / "threaded.py"
    script.write_text(f"import _thread, time\n_thread.start_new_thread(time.sleep, (1000,))\n{PUPPET}")
    command = [sys.executable, "-I", "-S", str(script), str(tmp_path / "door")]
    with ExitStack() as stack:

        def start(how: str) -> Kept:
            options = ["--watchdog", "1.5", "--kill", "0.1"]
            keeper = stack.enter_context(kept(tmp_path, *EAGER, *options, command=command))
            server = keeper.ready_server()
            hold(server, "a", "kept")
            threads = [int(task.name) for task in Path(f"/proc/{server.pid}/task").iterdir()]
            thread = max(threads)
            assert thread != server.pid
            if libc.ptrace(PTRACE_SEIZE, thread, None, None):
                pytest.skip("may not trace a process here")
            stack.callback(reap, thread)
            stack.callback(end, server)
            server.kill(signal.SIGKILL if how == "by another" else signal.SIGSTOP)
            return keeper

        yield start


PTRACE_SEIZE = 0x4206
WALL = 0x40000000


def end(server: Puppet) -> None:
    with suppress(ProcessLookupError):
        server.kill()


def reap(thread: int) -> None:
    with suppress(ChildProcessError):
        while not os.WIFSIGNALED(os.waitpid(thread, WALL)[1]):
            pass


class TestHalfDead:
    @pytest.mark.parametrize("how", ["by another", "by the watchdog"])
    def test_it_holds_up_no_successor(self, half_dead: Callable[[str], Kept], how: str) -> None:
        keeper = half_dead(how)
        began = time.monotonic()

        held, others = keeper.server().begin()

        reasons = {
            "by another": "was killed, and cannot die",
            "by the watchdog": "gave no sign of life for 1.5 s",
        }
        assert (held, others) == ({"a": "kept"}, [f"restarts 1 {reasons[how]}"])
        assert Path(f"/proc/{keeper.puppets[0].pid}").exists()
        assert how != "by another" or time.monotonic() - began < 1.5

    def test_it_is_reaped_when_it_dies_at_last(self, half_dead: Callable[[str], Kept]) -> None:
        keeper = half_dead("by another")
        second = keeper.ready_server()
        first = keeper.puppets[0]

        reap(max(int(task.name) for task in Path(f"/proc/{first.pid}/task").iterdir()))

        while Path(f"/proc/{first.pid}").exists():
            second.say("alive")
            time.sleep(0.01)

    def test_nobody_looks_while_it_says_that_it_lives(self) -> None:
        options = Options(["--foreground", "--", "/nowhere/server"])
        channel, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server = Server(options, Descriptor(os.pidfd_open(os.getpid())), os.getpid(), Channel(channel))

        Keeper(options).hear(server, "alive", "", None)

        assert server.look_at - time.monotonic() > options.watchdog_s / 4 + 1


class TestReload:
    def test_a_good_candidate_takes_over(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        hold(old, "a", "kept")
        hold(old, "b", "replaced")

        hold(old, "b", "offered", "offer")
        hold(old, "c", "added", "offer")
        old.say("reload")
        new = keeper.server()
        new.say("prepared")
        old.expect("suspend")
        old.say("suspended")
        held, others = new.get_ready()
        old.expect("leave")
        old.exit(0)
        old.await_end()
        new.kill()

        expected = {"a": "kept", "b": "offered", "c": "added"}
        assert (held, others) == (expected, ["successor"])
        assert keeper.server().begin() == (expected, ["restarts 1 killed by SIGKILL"])

    def test_an_old_one_that_does_not_leave_is_killed(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--grace", "1") as keeper:
            old = keeper.ready_server()
            old.say("reload")
            new = keeper.server()
            new.say("prepared")
            old.expect("suspend")
            old.say("suspended")

            new.get_ready()

            old.await_end()

    @pytest.mark.parametrize("how", ["dies", "says so", "hangs", "hangs before", "is done too early"])
    def test_a_bad_candidate_leaves_the_old_one_serving(self, tmp_path: Path, how: str) -> None:
        with kept(tmp_path, *EAGER, "--start-deadline", "2") as keeper:
            old = keeper.ready_server()
            hold(old, "a", "as before")
            hold(old, "a", "offered", "offer")
            old.say("reload")
            new = keeper.server()
            if how == "is done too early":
                new.say("done")
            elif how != "hangs before":
                new.say("prepared")
                old.expect("suspend")
                old.say("suspended")
                assert new.begin()[0] == {"a": "offered"}
            hold(new, "b", "of the candidate")
            new.say("drop a")

            if how == "dies":
                new.print("SyntaxError: new code\n")
                new.exit(1)
            elif how == "says so":
                new.say('failed {"error": "bad configuration"}')
                new.exit(2)
            resumed, _ = old.hear()
            old.kill()

            reasons = {
                "dies": "resume it exited with code 1: SyntaxError: new code",
                "says so": 'resume {"error": "bad configuration"}',
            }
            assert resumed == reasons.get(how, "resume was not ready within 2 s")
            assert keeper.server().begin() == ({"a": "as before"}, ["restarts 1 killed by SIGKILL"])

    def test_an_old_one_that_does_not_stop_is_killed_and_the_candidate_serves(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--grace", "0.1") as keeper:
            old = keeper.ready_server()
            hold(old, "a", "kept")
            hold(old, "b", "offered", "offer")
            old.say("reload")
            new = keeper.server()

            held, others = new.begin()

            old.await_end()
            assert (held, others) == ({"a": "kept", "b": "offered"}, [])

    def test_an_old_one_may_die_before_the_candidate_is_prepared(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        hold(old, "a", "kept")
        old.say("reload")
        new = keeper.server()

        old.kill()
        keeper.await_line("killed by SIGKILL")
        held, others = new.get_ready()
        new.kill()

        assert (held, others) == ({"a": "kept"}, [])
        assert keeper.server().begin()[0] == {"a": "kept"}

    def test_if_both_die_another_is_started_with_what_was_held(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        hold(old, "a", "as before")
        hold(old, "a", "offered", "offer")
        old.say("reload")
        new = keeper.server()
        new.say("prepared")
        old.expect("suspend")
        old.say("suspended")
        new.begin()

        old.kill()
        keeper.await_line("killed by SIGKILL")
        new.exit(5)

        assert keeper.server().begin() == ({"a": "as before"}, ["restarts 1 it exited with code 5"])

    def test_what_a_candidate_holds_and_drops_counts_once_it_is_ready(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        hold(old, "a", "of the old one")
        old.say("reload")
        new = keeper.server()
        new.say("prepared")
        old.expect("suspend")
        old.say("suspended")
        new.begin()

        new.say("drop a")
        hold(new, "b", "of the candidate")
        new.say("ready {}")
        new.kill()

        assert keeper.server().begin()[0] == {"b": "of the candidate"}

    def test_a_successor_that_finds_nothing_to_serve_ends_all(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        old.say("reload")
        new = keeper.server()
        new.say("prepared")
        old.expect("suspend")
        old.say("suspended")
        new.begin()

        new.say("done")
        new.exit(0)

        assert keeper.end() == 0
        old.await_end()

    def test_a_second_reload_meanwhile_is_not_begun(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        old.say("reload")
        old.say("reload")
        new = keeper.server()

        new.exit(1)
        old.expect("resume it exited with code 1")
        old.kill()

        assert keeper.server().begin()[1] == ["restarts 1 killed by SIGKILL"]


class TestEnd:
    def test_a_server_that_is_done_ends_it(self, keeper: Kept) -> None:
        server = keeper.ready_server()

        server.say("done")
        server.exit(0)

        assert keeper.end() == 0

    def test_one_that_is_done_and_does_not_exit_is_ended(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--grace", "0.1") as keeper:
            server = keeper.ready_server()

            server.say("done")
            server.await_end()

            assert keeper.end() == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
    def test_a_signal_is_passed_on_as_a_word(self, keeper: Kept, number: signal.Signals) -> None:
        server = keeper.ready_server()

        keeper.process.send_signal(number)
        server.expect("end")
        server.say("done")
        server.exit(0)

        assert keeper.end() == 0

    def test_one_that_dies_on_the_way_gets_a_successor_that_is_told_too(self, keeper: Kept) -> None:
        server = keeper.ready_server()
        hold(server, "a", "kept")
        keeper.process.send_signal(signal.SIGTERM)
        server.expect("end")

        server.kill()
        second = keeper.server()
        held, _ = second.begin()
        second.expect("end")
        second.say("done")
        second.exit(0)

        assert held == {"a": "kept"}
        assert keeper.end() == 0

    def test_one_that_gets_ready_while_it_is_told_counts_as_ready(self, keeper: Kept) -> None:
        server = keeper.server()
        server.begin()
        keeper.process.send_signal(signal.SIGTERM)
        server.expect("end")

        hold(server, "a", "mounted")
        server.say('ready {"ready": true}')
        assert json.loads(keeper.stdout.line()) == {"ready": True}
        server.kill()

        assert keeper.server().begin()[0] == {"a": "mounted"}

    def test_while_no_server_is_up_one_is_started_to_be_told(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--delay", "1000", "--delay-max", "1000", "--steady", "1000") as keeper:
            keeper.ready_server().kill()
            keeper.ready_server().kill()
            keeper.await_line("in 0 s")
            keeper.await_line("in 1000 s")

            keeper.process.send_signal(signal.SIGTERM)
            server = keeper.server()
            server.begin()
            server.expect("end")
            server.say("done")
            server.exit(0)

            assert keeper.end() == 0

    def test_a_reload_is_given_up_for_it(self, keeper: Kept) -> None:
        old = keeper.ready_server()
        old.say("reload")
        new = keeper.server()
        new.say("prepared")
        old.expect("suspend")
        old.say("suspended")
        new.begin()

        keeper.process.send_signal(signal.SIGTERM)

        new.await_end()
        old.expect("resume the keeper was told to end")
        old.expect("end")

    def test_servers_that_cannot_even_end_are_not_started_for_ever(self, keeper: Kept) -> None:
        keeper.ready_server()
        keeper.process.send_signal(signal.SIGTERM)

        keeper.puppets[0].kill()
        keeper.server().kill()
        with suppress(OSError):
            keeper.server().kill()

        assert keeper.await_line("no server can end what is served: killed by SIGKILL")
        assert keeper.end() == 1

    def test_one_that_does_not_end_is_killed_in_time(self, tmp_path: Path) -> None:
        with kept(tmp_path, *EAGER, "--end-deadline", "0.1") as keeper:
            server = keeper.ready_server()

            keeper.process.send_signal(signal.SIGTERM)

            assert keeper.end() == 1
            server.await_end()

    def test_a_first_server_that_is_told_before_it_is_ready_ends_and_its_starter_hears(
        self, keeper: Kept
    ) -> None:
        server = keeper.server()
        server.begin()

        keeper.process.send_signal(signal.SIGTERM)
        server.expect("end")
        server.say("done")
        server.exit(0)

        assert json.loads(keeper.stdout.line())["ready"] is False
        assert keeper.end() == 0

    def test_a_hangup_is_nothing_in_the_background(self, keeper: Kept) -> None:
        server = keeper.ready_server()

        keeper.process.send_signal(signal.SIGHUP)
        server.kill()

        assert keeper.server().begin()[1] == ["restarts 1 killed by SIGKILL"]

    def test_a_hangup_ends_it_in_the_foreground(self, tmp_path: Path) -> None:
        with kept(tmp_path, "--foreground") as keeper:
            server = keeper.ready_server()

            keeper.process.send_signal(signal.SIGHUP)

            server.expect("end")

    def test_a_hangup_that_was_ignored_before_stays_ignored(self, tmp_path: Path) -> None:
        former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with kept(tmp_path, "--foreground") as keeper:
                server = keeper.ready_server()

                keeper.process.send_signal(signal.SIGHUP)
                server.kill()

                assert keeper.server().begin()[1] == ["restarts 1 killed by SIGKILL"]
        finally:
            signal.signal(signal.SIGHUP, former)


class TestHostility:
    def test_a_fault_of_its_own_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept_here = Keeper(Options(["--foreground", "--", "/nowhere/server"]))
        kept_here.store.hold("a", Descriptor(memory("kept")))
        loop = Loop(kept_here, -1)
        faults = iter([MemoryError(), ValueError()])

        def turn() -> None:
            for fault in faults:
                raise fault
            kept_here.exit_code = 0

        monkeypatch.setattr(loop, "turn", turn)

        assert loop.run() == 0
        assert content(kept_here.store.held["a"].number) == "kept"

    def test_a_killed_server_that_does_not_die_is_left_alone(self) -> None:
        options = Options(["--foreground", "--", "/nowhere/server"])
        kept_here = Keeper(options)
        channel, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undying = Server(options, Descriptor(os.pidfd_open(os.getpid())), 0, Channel(channel))
        undying.enter("killed")
        undying.reason = "gave no sign of life"
        kept_here.current, kept_here.was_ready = undying, True

        Loop(kept_here, -1).look_after(undying, undying.deadline)

        assert kept_here.current is None
        assert (kept_here.restarts, kept_here.last_reason) == (1, "gave no sign of life")

    def test_no_zombie_is_left(self, keeper: Kept) -> None:
        keeper.ready_server().kill()
        keeper.ready_server()

        children = Path(f"/proc/{keeper.process.pid}/task/{keeper.process.pid}/children").read_text()
        assert len(children.split()) == 1

    def test_rubbish_is_logged_once_and_ignored(self, keeper: Kept) -> None:
        server = keeper.ready_server()

        for rubbish in (
            "nonsense",
            "hold",
            "hold a/b",
            "drop",
            "prepared",
            "start",
            "held x",
            "\0",
            "x" * 50_000,
        ):
            server.say(rubbish)
        server.channel.send(b"\xff\xfe hold")
        hold(server, "a/b", "lost")
        hold(server, "nonsense", "lost", "nonsense")
        hold(server, "a", "kept")
        server.kill()

        assert keeper.server().begin()[0] == {"a": "kept"}
        lines = [keeper.stderr.line(), keeper.stderr.line()]
        assert "cannot be heeded" in lines[0]
        assert "killed by SIGKILL" in lines[1]
        assert keeper.descriptor_count() < 16

    def test_more_descriptors_than_one_are_closed(self, keeper: Kept) -> None:
        server = keeper.ready_server()
        descriptors = [memory(str(number)) for number in range(20)]

        for _ in range(30):
            socket.send_fds(server.channel, [b"hold a"], descriptors)
        server.kill()
        keeper.ready_server()

        assert keeper.descriptor_count() < 16

    def test_a_flood_keeps_it_from_nothing(self, keeper: Kept) -> None:
        server = keeper.ready_server()
        flood = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FLOOD, str(server.channel.fileno())],
            pass_fds=[server.channel.fileno()],
        )
        try:
            keeper.process.send_signal(signal.SIGTERM)

            server.expect("end")
        finally:
            flood.kill()
            flood.wait(DEADLINE_S)

    def test_a_server_that_does_not_read_hangs_nothing(self, tmp_path: Path) -> None:
        given = {f"n{number}": memory(str(number)) for number in range(HELD_MAX)}

        with kept(tmp_path, *EAGER, "--start-deadline", "2", held=given) as keeper:
            keeper.ready_server().kill()
            deaf = keeper.server()
            deaf.say("prepared")

            deaf.await_end()
            held, others = keeper.server().get_ready()

        assert held == {f"n{number}": str(number) for number in range(HELD_MAX)}
        assert others == ["restarts 2 was not ready within 2 s"]

    def test_what_is_held_is_bounded(self, keeper: Kept) -> None:
        server = keeper.ready_server()

        for number in range(HELD_MAX + 10):
            hold(server, f"n{number}", str(number))
        server.kill()

        assert len(keeper.server().begin()[0]) == HELD_MAX

    def test_a_closed_standard_error_harms_nothing(self, keeper: Kept) -> None:
        assert keeper.process.stderr
        keeper.process.stderr.close()
        server = keeper.ready_server()
        hold(server, "a", "kept")

        server.kill()

        assert keeper.server().begin()[0] == {"a": "kept"}

    def test_a_standard_error_that_nobody_reads_does_not_block_it(self, keeper: Kept) -> None:
        assert keeper.process.stderr
        pipe = os.open(f"/proc/{keeper.process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while os.write(pipe, b"x" * 4096):
                pass
        os.close(pipe)
        server = keeper.ready_server()
        hold(server, "a", "kept")

        server.kill()

        assert keeper.server().begin()[0] == {"a": "kept"}

    def test_it_has_little_memory_for_itself(self, keeper: Kept) -> None:
        server = keeper.ready_server()
        hold(server, "a", "kept")
        for _ in range(20):
            keeper.puppets[-1].kill()
            keeper.ready_server()

        # Measured: 3.0 MB with Python 3.11. What it must not have is some module that it does not need.
        assert private_kb(keeper.process.pid) < 6_000


FLOOD = """
import sys, _socket
channel = _socket.socket(fileno=int(sys.argv[1]))
while True:
    channel.send(b"drop nothing")
"""


class Systemd:
    """Plays the service manager: what arrives at its notification socket."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        self.socket.settimeout(DEADLINE_S)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.address)}

    def heard(self) -> tuple[set[str], str]:
        """Return the fields of the next message, and the contents of the file that came with it."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 8)
        texts = [content(descriptor) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        return set(data.decode().split("\n")), "".join(texts)

    def store(self) -> dict[str, int]:
        """Return what is in the store after all that was said so far."""
        store: dict[str, int] = {}
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 8)
                fields = dict(line.split("=", 1) for line in data.decode().split("\n"))
                if "FDSTORE" in fields:
                    store[fields["FDNAME"]] = descriptors[0]
                elif "FDSTOREREMOVE" in fields:
                    os.close(store.pop(fields["FDNAME"]))
        return store


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with ExitStack() as stack:
        manager = Systemd(tmp_path / "notify")
        stack.callback(manager.socket.close)
        yield manager


class TestSystemd:
    def test_it_hears_once_that_we_are_ready(self, tmp_path: Path, systemd: Systemd) -> None:
        with kept(tmp_path, "--foreground", *EAGER, environment=systemd.environment) as keeper:
            keeper.ready_server().kill()
            second = keeper.ready_server()
            second.say("drop nothing")
            hold(second, "a", "last")

            assert systemd.heard() == ({"READY=1"}, "")
            assert systemd.heard()[1] == "last"

    def test_its_store_has_what_is_held(self, tmp_path: Path, systemd: Systemd) -> None:
        given = {"config": memory("given")}

        with kept(tmp_path, "--foreground", *EAGER, held=given, environment=systemd.environment) as keeper:
            server = keeper.ready_server()
            hold(server, "a", "first")
            hold(server, "a", "second")
            server.say("drop a")
            heard = [systemd.heard() for _ in range(6)]

        assert heard == [
            ({"FDSTORE=1", "FDNAME=config", "FDPOLL=0"}, "given"),
            ({"READY=1"}, ""),
            ({"FDSTORE=1", "FDNAME=a", "FDPOLL=0"}, "first"),
            ({"FDSTOREREMOVE=1", "FDNAME=a"}, ""),
            ({"FDSTORE=1", "FDNAME=a", "FDPOLL=0"}, "second"),
            ({"FDSTOREREMOVE=1", "FDNAME=a"}, ""),
        ]

    def test_a_keeper_that_it_starts_again_has_what_was_stored(
        self, tmp_path: Path, systemd: Systemd
    ) -> None:
        stored = {"b.fuse": memory("mount"), "node": memory("socket")}

        with kept(tmp_path, "--foreground", listened=stored, environment=systemd.environment) as keeper:
            server = keeper.server()
            held, _ = server.get_ready()
            environment = Path(f"/proc/{server.pid}/environ").read_bytes()

            assert held == {"b.fuse": "mount", "node": "socket"}
            # It has them already.
            assert systemd.heard() == ({"READY=1"}, "")
            assert b"LISTEN_FDS=" not in environment

    def test_a_killed_keeper_loses_nothing(self, tmp_path: Path, systemd: Systemd) -> None:
        with kept(tmp_path, "--foreground", environment=systemd.environment) as keeper:
            server = keeper.server()
            server.begin()
            hold(server, "a", "kept")
            hold(server, "b", "dropped")
            server.say("drop b")
            server.say("ready {}")
            server.kill()
            keeper.server()  # so that all before was heeded
            keeper.process.kill()
            keeper.end()
        store = systemd.store()

        with kept(tmp_path, "--foreground", listened=store, environment=systemd.environment) as keeper:
            assert keeper.server().begin()[0] == {"a": "kept"}

    def test_what_is_given_replaces_what_was_stored(self, tmp_path: Path, systemd: Systemd) -> None:
        stored, given = {"a": memory("stored"), "b": memory("stored")}, {"a": memory("given")}

        with kept(
            tmp_path, "--foreground", listened=stored, held=given, environment=systemd.environment
        ) as keeper:
            held, _ = keeper.server().begin()

        assert held == {"a": "given", "b": "stored"}
        assert systemd.heard() == ({"FDSTOREREMOVE=1", "FDNAME=a"}, "")
        assert systemd.heard() == ({"FDSTORE=1", "FDNAME=a", "FDPOLL=0"}, "given")

    def test_descriptors_for_another_process_are_not_taken(self, tmp_path: Path) -> None:
        environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}

        with kept(tmp_path, "--foreground", environment=environment) as keeper:
            assert keeper.server().begin()[0] == {}

    def test_it_hears_of_the_end(self, tmp_path: Path, systemd: Systemd) -> None:
        with kept(tmp_path, "--foreground", environment=systemd.environment) as keeper:
            server = keeper.ready_server()
            hold(server, "a", "held")
            keeper.process.send_signal(signal.SIGTERM)
            server.expect("end")
            server.say("done")
            server.exit(0)
            keeper.end()
            heard = [systemd.heard()[0] for _ in range(4)]

        assert heard[2:] == [{"STOPPING=1"}, {"FDSTOREREMOVE=1", "FDNAME=a"}]

    def test_one_that_does_not_listen_harms_nothing(self, tmp_path: Path, systemd: Systemd) -> None:
        given = {f"n{number}": memory(str(number)) for number in range(HELD_MAX)}

        with kept(tmp_path, "--foreground", held=given, environment=systemd.environment) as keeper:
            # Far more than a datagram socket takes before it is read.
            keeper.ready_server()
            stored = {frozenset(systemd.heard()[0]) for _ in range(HELD_MAX)}

            assert len(stored) == HELD_MAX
            assert systemd.heard()[0] == {"READY=1"}

    @pytest.mark.parametrize("address", ["", "nonsense", "/nowhere/notify", "@nobody"])
    def test_without_it_all_is_well(self, tmp_path: Path, address: str) -> None:
        with kept(tmp_path, "--foreground", environment={"NOTIFY_SOCKET": address}) as keeper:
            server = keeper.ready_server()
            hold(server, "a", "kept")
            server.kill()

            assert keeper.server().begin()[0] == {"a": "kept"}

    def test_in_the_background_it_does_not_speak_for_somebody_elses_service(
        self, tmp_path: Path, systemd: Systemd
    ) -> None:
        with kept(tmp_path, environment=systemd.environment) as keeper:
            server = keeper.ready_server()
            hold(server, "a", "kept")
            server.kill()

            assert keeper.server().begin()[0] == {"a": "kept"}
            assert systemd.store() == {}
            environment = Path(f"/proc/{keeper.puppets[-1].pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET=" not in environment
