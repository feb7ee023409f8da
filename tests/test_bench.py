"""This module tests what the benchmark measures with: tree and link, turns, kills, who waits, its reports."""

import compileall
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from errno import ENOTCONN
from pathlib import Path

import pytest
from click.testing import CliRunner

from contrib.bench import blackhole, killing, measuring, report, waiting
from contrib.bench.blackhole import Material
from contrib.bench.kernel import cpu_s
from contrib.bench.killing import DiesWithServerError, Kill, Onlooker, Read, stalls_s
from contrib.bench.link import Distance, link, round_trip_ms, shapes
from contrib.bench.places import mount_options
from contrib.bench.relay import QUEUE_S, Direction
from contrib.bench.report import Figure, Results
from contrib.bench.restarts import Packages
from contrib.bench.tasks import Corner, State, Task, elapsed_s, probe
from contrib.bench.waiting import UndeadError, ends, readers, silent, start_waiting, state
from contrib.grid import GridError, Node
from contrib.python_tree import LIBRARY, PythonTree, stale_sources

SECONDS = Figure("tar", "", "s")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of one compiled module."""
    directory = tmp_path / LIBRARY
    directory.mkdir(parents=True)
    (directory / "module.py").write_text("answer = 42\n")
    compileall.compile_dir(directory, quiet=2)
    return directory


def test_a_compiled_tree_has_no_stale_source(library: Path, tmp_path: Path) -> None:
    assert list(stale_sources(tmp_path)) == []


def test_a_source_that_changed_after_it_was_compiled_is_stale(library: Path, tmp_path: Path) -> None:
    os.utime(library / "module.py", (0, 0))

    assert list(stale_sources(tmp_path)) == [library / "module.py"]


def test_a_source_that_does_not_compile_is_not_stale(library: Path, tmp_path: Path) -> None:
    (library / "broken.py").write_text("def :\n")

    assert list(stale_sources(tmp_path)) == []


class Wire:
    """One direction of a relay between two sockets that keep packets apart, as TUN devices do."""

    def __init__(self, delay_s: float, rate_bytes: float) -> None:
        self._sender, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        target, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sockets = [self._sender, source, target, self._receiver]
        for each in self._sockets:
            each.setblocking(False)
        self.direction = Direction(source.fileno(), target.fileno(), delay_s, rate_bytes)

    def send(self, packet: bytes, now: float) -> None:
        self._sender.send(packet)
        self.direction.take(now)

    def received(self, now: float) -> list[bytes]:
        self.direction.deliver(now)
        packets = []
        try:
            while True:
                packets.append(self._receiver.recv(65_536))
        except BlockingIOError:
            return packets

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire of 10 ms and 1,000 bytes a second."""
    made = Wire(delay_s=0.01, rate_bytes=1000)
    yield made
    made.close()


def test_a_packet_arrives_after_its_time_on_the_wire_and_the_delay(wire: Wire) -> None:
    wire.send(bytes(100), now=5.0)

    assert wire.received(5.1099) == []
    assert wire.received(5.1101) == [bytes(100)]


def test_packets_share_the_rate(wire: Wire) -> None:
    wire.send(b"a" * 100, now=0.0)
    wire.send(b"b" * 100, now=0.0)

    assert wire.received(0.12) == [b"a" * 100]
    assert wire.received(0.22) == [b"b" * 100]


def test_a_packet_that_would_queue_too_long_is_dropped(wire: Wire) -> None:
    fitting = int(QUEUE_S * 1000)

    wire.send(bytes(fitting), now=0.0)
    wire.send(b"late", now=0.0)

    assert wire.received(100.0) == [bytes(fitting)]


def test_a_delay_is_split_between_both_directions() -> None:
    assert shapes(Distance(0.014, 12.5e6)) == [
        ["netem", "delay", "7000us", "limit", "20000", "rate", "100000000bit"]
    ]


@pytest.mark.root
@pytest.mark.needs("ip", "tc")
def test_a_link_takes_its_round_trip_and_leaves_nothing(tmp_path: Path) -> None:
    with link(Distance(0.02, 0), tmp_path / "log") as joined:
        taken_ms = round_trip_ms(joined)

    assert taken_ms is not None
    assert taken_ms >= 20
    devices = {path.name[:-1] for path in Path("/sys/class/net").iterdir()}
    assert f"tfb{os.getpid() % 1_000_000}" not in devices


def test_a_ratio_is_taken_to_ext4_in_the_same_state() -> None:
    results = Results()
    for value in (1.0, 3.0, 2.0):
        results.add(SECONDS, "mount", State.WARM, value)
    results.add(SECONDS, "ext4", State.COLD, 0.5)
    results.add(SECONDS, "ext4", State.HOT, 100.0)

    assert report.cell(results, SECONDS, "mount", State.WARM, State.COLD) == "2 s  × 4"


def test_what_was_not_measured_is_a_dash() -> None:
    assert report.cell(Results(), SECONDS, "mount", State.HOT, State.HOT) == "–"


@dataclass
class Spot:
    """A place that notes the states that it is brought into, and whose tasks note it."""

    name: str
    states: Sequence[State]
    notes: list[str]
    corner: Corner = field(init=False)

    def __post_init__(self) -> None:
        self.corner = Corner(PythonTree(Path(self.name)), Path(), Path())

    def prepare(self, state: State) -> None:
        self.notes.append(f"{state.value} {self.name}")


def noted(notes: list[str], states: Sequence[State] = tuple(State)) -> Task:
    """A task that notes where it runs."""

    def run(corner: Corner) -> dict[str, float]:
        notes.append(f"run on {corner.tree.prefix}")
        return {"": 1.0}

    return Task("nothing", {"": "s"}, run, states)


def test_hot_runs_alternate_between_places_after_one_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "HOT_S", 0.0)
    monkeypatch.setattr(measuring, "HOT_ROUNDS_MIN", 2)
    notes: list[str] = []
    places = [Spot("disk", (State.COLD, State.HOT), notes), Spot("mount", tuple(State), notes)]
    results = Results()

    measuring.measure([noted(notes)], places, results, lambda _: None)

    assert [note for note in notes if note.startswith("run")] == [
        f"run on {name}"
        for name in ["disk", "mount", "mount", "disk", "mount", "disk", "mount", "disk", "mount"]
    ]
    counts = {(place, state): len(values) for (_, place, state), values in results.samples.items()}
    assert counts == {
        ("disk", State.COLD): 1,
        ("mount", State.COLD): 1,
        ("mount", State.WARM): 1,
        ("disk", State.HOT): 2,
        ("mount", State.HOT): 2,
    }


def test_a_task_for_hot_files_runs_on_hot_ones_alone() -> None:
    notes: list[str] = []
    results = Results()

    measuring.measure(
        [noted(notes, (State.HOT,))], [Spot("mount", tuple(State), notes)], results, lambda _: None
    )

    assert {state for _, _, state in results.samples} == {State.HOT}
    assert "cold mount" not in notes


def test_a_failing_job_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"sh -c … failed: \[3\]"):
        elapsed_s([["sh", "-c", "exit 3"]])


@pytest.mark.parametrize(
    "name",
    ["stat_hot", "open_hot", "read_hot", "read_warm", "listdir_hot", "lstat_new", "lstat_absent"],
)
def test_a_probe_calls_for_each_name_of_a_list(name: str, library: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text("module.py\n__pycache__/../module.py\n")

    assert 0 < probe(name, library, names)["p50"] < 1e6


def test_a_probe_says_what_failed(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("missing\n")

    with pytest.raises(RuntimeError, match=r"(?s)open_hot: .*missing"):
        probe("open_hot", tmp_path, tmp_path / "names")


def test_processor_time_of_another_process_is_read_from_its_clock() -> None:
    before_s = cpu_s(os.getpid())
    sum(range(1_000_000))

    assert 0 < cpu_s(os.getpid()) - before_s < 60
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_options_of_the_mount_are_passed_on() -> None:
    assert mount_options("native", ["mount.spin_us=0"]) == ["--fuse", "native", "--set", "mount.spin_us=0"]
    assert mount_options(None, []) == []


@pytest.mark.parametrize(
    ("answer", "processes"),
    [('{"pid": 7, "server": {"keeper": 0}}', [7]), ('{"pid": 7, "server": {"keeper": 5}}', [5, 7])],
)
def test_a_node_knows_its_processes_from_its_stats(answer: str, processes: list[int], tmp_path: Path) -> None:
    node = Node(tmp_path, "", tmp_path, "", command=["sh", "-c", f"echo '{answer}'"])

    node.learn_processes()

    assert node.processes == processes


def test_a_stall_belongs_to_the_kill_that_it_follows() -> None:
    kills = [Kill(at=10.0, answer_s=0.5), Kill(at=20.0, answer_s=0.5), Kill(at=30.0, answer_s=0.5)]
    reads = [Read(5.0, 4.0), Read(9.9, 0.7), Read(11.0, 0.2), Read(20.1, 0.3)]

    assert stalls_s(kills, reads) == [0.7, 0.3, 0.0]


def test_each_kill_has_a_name_of_its_own_in_every_package_in_turn(tmp_path: Path) -> None:
    packages = Packages(tmp_path, count=2, kills=5)

    packages.make()

    assert len(set(packages.fresh)) == 5
    assert [name.split("/")[1] for name in packages.fresh] == [
        f"package-{index}" for index in (0, 1, 0, 1, 0)
    ]
    assert all((tmp_path / name).exists() for name in [*packages.names, *packages.fresh])


class KeptNode(Node):
    """A node whose mount is a directory of the disk, its server a sleeper that comes back when asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "", directory, "")
        self.servers: list[subprocess.Popen[bytes]] = []

    @property
    def mountpoint(self) -> Path:
        return self.directory

    def learn_processes(self) -> None:
        if not self.servers or self.servers[-1].poll() is not None:
            self.servers.append(subprocess.Popen(["sleep", "600"]))
        self.pid = self.servers[-1].pid


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KeptNode, Packages]]:
    """A node that shows one package, and kills that follow each other at once."""
    monkeypatch.setattr(killing, "PAUSE_S", (0.0, 0.01))
    packages = Packages(tmp_path / "source", count=1, kills=3)
    packages.make()
    node = KeptNode(packages.source)
    node.learn_processes()
    yield node, packages
    for server in node.servers:
        server.kill()
        server.wait()


def test_every_kill_is_answered_and_the_job_reads_on(kept: tuple[KeptNode, Packages], tmp_path: Path) -> None:
    node, packages = kept

    figures = killing.measure(node, packages.source, packages.names, packages.fresh, tmp_path)

    assert len(figures["restart to first answer, ms"]) == len(figures["longest stall of the job, ms"]) == 3
    assert figures["reads of the job"][0] >= len(packages.names)
    assert len(node.servers) == 4


def test_a_job_that_reads_other_bytes_fails(kept: tuple[KeptNode, Packages], tmp_path: Path) -> None:
    node, packages = kept
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", packages.source, other], check=True)
    (other / packages.names[-1]).write_bytes(b"other")

    with pytest.raises(GridError, match="differs"):
        killing.measure(node, other, packages.names, packages.fresh, tmp_path)


def test_a_mount_that_dies_with_its_server_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        killing, "JOB", [sys.executable, "-c", f"input(); print(1.0, {ENOTCONN}, flush=True)"]
    )
    onlooker = Onlooker()
    try:
        with pytest.raises(DiesWithServerError, match="this mount dies with its server"):
            onlooker.look(Path("anything"))
    finally:
        onlooker.end()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A file that nobody writes to: who reads it waits."""
    made = tmp_path / "fifo"
    os.mkfifo(made)
    return made


def waited_on(directory: Path, requests: int) -> Node:
    """Return a node whose server says that so many requests wait."""
    answer = json.dumps({"reads": {"waiting": requests}})
    return Node(directory, "", directory, "", command=["sh", "-c", f"echo '{answer}'"])


def test_readers_wait_until_they_are_killed(fifo: Path, tmp_path: Path) -> None:
    with readers() as started:
        assert start_waiting(waited_on(tmp_path, 3), started, [fifo] * 3) == 3
        pids = [job.pid for job in started.jobs]

        assert started.kill() > 0

        assert started.jobs == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_readers_end_with_their_block(fifo: Path) -> None:
    with pytest.raises(ZeroDivisionError), readers() as started:
        started.start([fifo] * 3)
        jobs = list(started.jobs)
        raise ZeroDivisionError

    assert [job.returncode for job in jobs] == [-signal.SIGKILL] * 3


def test_a_reader_that_gets_something_is_an_error(fifo: Path, tmp_path: Path) -> None:
    with readers() as started, pytest.raises(GridError, match="1 of 2 readers ended"):
        start_waiting(waited_on(tmp_path, 2), started, [fifo, Path("/dev/null")])


def test_readers_that_wait_for_something_else_are_an_error(fifo: Path, tmp_path: Path) -> None:
    with readers() as started, pytest.raises(GridError, match="no request waits"):
        start_waiting(waited_on(tmp_path, 0), started, [fifo])


def test_a_reader_that_lives_on_is_waited_for_until_the_deadline() -> None:
    with subprocess.Popen(["sleep", "600"]) as job:
        assert not ends(job, time.monotonic() + 0.01)
        job.kill()
        assert ends(job, time.monotonic() + 60)


def test_a_reader_that_outlives_sigkill_is_said_and_kept(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with readers() as started:
        started.start([fifo])
        jobs = list(started.jobs)
        with monkeypatch.context() as patch:
            patch.setattr(jobs[0], "kill", lambda: None)
            patch.setattr(waiting, "DEATH_DEADLINE_S", 0.01)

            with pytest.raises(UndeadError, match="1 of 1 readers live"):
                started.kill()

        assert started.jobs == jobs


def test_a_silent_process_does_not_run_and_goes_on_after_the_block(fifo: Path) -> None:
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as source:
        with silent(source.pid):
            os.waitid(os.P_PID, source.pid, os.WSTOPPED)
            assert state(source.pid) == "T"

        fifo.write_bytes(b"at last")
        assert source.communicate(timeout=60)[0] == b"at last"


def test_each_reader_has_a_file_of_its_own_and_each_look_new_names(tmp_path: Path) -> None:
    material = Material(tmp_path, readers=3, runs=2)

    material.make()

    files = [
        path for kind in blackhole.KINDS for number in (0, 1) for path in material.waited_for(kind, number)
    ]
    assert len(set(files)) == 12
    assert all((tmp_path / path).exists() for path in files)
    new = {material.new(who, number) for who in (blackhole.ALONE, *blackhole.KINDS) for number in (0, 1)}
    assert len(new) == 6
    assert all(len(list((tmp_path / path).iterdir())) == blackhole.LOOKED_AT for path in new)


def test_medians_are_shown_beside_targets_and_what_was_not_measured_is_left_empty() -> None:
    stat = "stat, p99, µs"
    shown = blackhole.table(
        {"nobody": {stat: [1.0, 3.0, 1200.0]}, "for bytes": {stat: [7.0], blackhole.DEATH: [1234.5]}}, 200
    )

    assert [list(column.cells) for column in shown.columns] == [
        [stat, blackhole.DEATH],
        ["3", ""],
        ["7", "1,234"],
        ["1,000", "1,000"],
    ]


@pytest.mark.root
@pytest.mark.fuse
def test_others_are_measured_beside_readers_of_a_stopped_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TORRENTFS_CONFIG_DIR", str(tmp_path / "etc"))
    monkeypatch.setattr(blackhole, "LOOKED_AT", 20)

    done = CliRunner().invoke(
        blackhole.main,
        ["--readers", "5", "--runs", "1", "--scratch", str(tmp_path), "--json", str(tmp_path / "figures")],
    )

    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "figures").read_text())
    assert list(figures) == [blackhole.ALONE, *blackhole.KINDS]
    looks = {f"{title}, {percentile}, µs" for title in blackhole.PROBES for percentile in ("p50", "p99")}
    assert set(figures[blackhole.ALONE]) == looks
    for kind in blackhole.KINDS:
        assert set(figures[kind]) == looks | {blackhole.REQUESTS, blackhole.DEATH}
        assert figures[kind][blackhole.REQUESTS] == [5]
    assert not list(tmp_path.glob("torrentfs-blackhole-*"))
    assert not list((tmp_path / "run").iterdir())
