"""This module puts the origin at a distance: a network namespace, and a link with a delay and a rate.

The kernel shapes a veth pair (netem for delay, tbf for a rate alone) where it can; where it has no netem,
packets go through two TUN devices and a relay of our own (see relay.py). Both carry real TCP, handshakes
and slow start included.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from contrib.grid import GridError, await_line, process, run, undisturbed

# RFC 2544 sets these addresses aside for benchmarks.
NEAR = "198.18.0.1"
FAR = "198.18.0.2"
PREFIX_LENGTH = 30
QUEUE_S = 0.1


@dataclass(frozen=True, slots=True)
class Distance:
    """What lies between node and origin: round-trip time, and bytes per second each way (0: unbounded)."""

    round_trip_s: float
    rate_bytes: float

    def __bool__(self) -> bool:
        return self.round_trip_s > 0 or self.rate_bytes > 0


@dataclass(frozen=True, slots=True)
class Link:
    """A link that stands: *far* is the origin's address, *inside* prefixes commands that run on its side."""

    far: str
    inside: Sequence[str]
    means: str


@contextmanager
def link(distance: Distance, log: Path) -> Iterator[Link]:
    """Make a namespace and a link of *distance* to it."""
    tag = f"tfb{os.getpid() % 1_000_000}"
    near, far = f"{tag}n", f"{tag}f"
    inside = ["ip", "netns", "exec", tag]
    run(["ip", "netns", "add", tag])
    try:
        run([*inside, "ip", "link", "set", "lo", "up"])
        if means := veth(tag, near, far, distance):
            yield Link(FAR, inside, means)
            return
        options = ["--round-trip-s", str(distance.round_trip_s), "--rate-bytes", str(distance.rate_bytes)]
        command = [sys.executable, "-m", "contrib.bench.relay", *options, near, far]
        with process(command, log) as relay:
            await_line(relay, log, "ready")
            join(tag, near, far)
            yield Link(FAR, inside, "a relay between TUN devices")
    finally:
        with undisturbed():
            # One end of a pair takes the other along; TUN devices are gone with the relay.
            for command in (["ip", "link", "delete", near], ["ip", "netns", "delete", tag]):
                with suppress(GridError):
                    run(command)


def veth(tag: str, near: str, far: str, distance: Distance) -> str:
    """Join both sides by a shaped veth pair; return by what, or "" if this kernel cannot shape it so."""
    run(["ip", "link", "add", near, "type", "veth", "peer", "name", far])
    try:
        # A device loses its shape when it moves to another namespace: join first.
        join(tag, near, far)
        for shape in shapes(distance):
            run(["tc", "qdisc", "add", "dev", near, "root", *shape])
            run(["ip", "netns", "exec", tag, "tc", "qdisc", "add", "dev", far, "root", *shape])
    except GridError:
        run(["ip", "link", "delete", near])
        return ""
    return "a veth pair, " + " ".join(word for shape in shapes(distance) for word in shape[:1])


def shapes(distance: Distance) -> list[list[str]]:
    """Return the queueing disciplines for each end: half of the round trip in each direction."""
    rate = f"{round(distance.rate_bytes * 8)}bit"
    if not distance.round_trip_s:
        return [["tbf", "rate", rate, "burst", "256kb", "latency", f"{QUEUE_S * 1e3:.0f}ms"]]
    # The limit is in packets: room for what is under way on a fast link, and for a queue.
    netem = ["netem", "delay", f"{distance.round_trip_s / 2 * 1e6:.0f}us", "limit", "20000"]
    return [[*netem, "rate", rate] if distance.rate_bytes else netem]


def join(tag: str, near: str, far: str) -> None:
    """Give both devices their addresses, *far* inside the namespace *tag*."""
    run(["ip", "link", "set", far, "netns", tag])
    run(["ip", "address", "add", f"{NEAR}/{PREFIX_LENGTH}", "dev", near])
    run(["ip", "link", "set", near, "up"])
    run(["ip", "netns", "exec", tag, "ip", "address", "add", f"{FAR}/{PREFIX_LENGTH}", "dev", far])
    run(["ip", "netns", "exec", tag, "ip", "link", "set", far, "up"])


def round_trip_ms(place: Link) -> float | None:
    """Measure the link by three TCP connections that its far end refuses; None if that fails."""
    command = [sys.executable, "-S", "-c", CONNECT, place.far]
    with suppress(subprocess.SubprocessError, ValueError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return float(done.stdout)
    return None


CONNECT = """
import socket, sys, time
times = []
for _ in range(3):
    start = time.perf_counter()
    try:
        socket.create_connection((sys.argv[1], 9), timeout=5).close()
    except ConnectionRefusedError:
        times.append(time.perf_counter() - start)
print(min(times) * 1e3)
"""
