"""This module tests what the benchmark measures with: its tree, its link over a distance, its report."""

import compileall
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrib.bench import report
from contrib.bench.link import Distance, link, round_trip_ms, shapes
from contrib.bench.places import State
from contrib.bench.relay import QUEUE_S, Direction
from contrib.bench.report import Figure, Results
from contrib.python_tree import LIBRARY, stale_sources

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
