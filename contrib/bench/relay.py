"""This module forwards packets between two TUN devices, with a delay and a rate: for kernels without netem.

Run as `python -m contrib.bench.relay [--round-trip-s S] [--rate-bytes N] NEAR FAR`; it prints "ready" when
both devices exist, and ends on SIGTERM, the devices with it. Packets that would queue for more than QUEUE_S
are dropped, as a router does. A packet costs Python about 15 µs, hence the large ones; beyond some 200 MB/s
the relay itself is the bottleneck.
"""

import argparse
import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
MTU = 9000
PACKET_LENGTH_MAX = 65_536
QUEUE_S = 0.25
BATCH = 64  # packets taken from one side before the other has its turn


class Direction:
    """One way through the relay: packets read from *source* are due at *target* some time later."""

    def __init__(self, source: int, target: int, delay_s: float, rate_bytes: float) -> None:
        self.source = source
        self._target = target
        self._delay_s = delay_s
        self._byte_s = 1 / rate_bytes if rate_bytes else 0.0
        self._line_free = 0.0
        self._under_way: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        """Read what has arrived, at most BATCH packets, and give each the time when it is due."""
        for _ in range(BATCH):
            try:
                packet = os.read(self.source, PACKET_LENGTH_MAX)
            except BlockingIOError:
                return
            sent = max(now, self._line_free) + len(packet) * self._byte_s
            if sent - now > QUEUE_S:
                continue
            self._line_free = sent
            self._under_way.append((sent + self._delay_s, packet))

    def deliver(self, now: float) -> None:
        """Write all packets that are due."""
        while self._under_way and self._under_way[0][0] <= now:
            try:
                os.write(self._target, self._under_way.popleft()[1])
            except OSError:
                # The device is not up yet, or its queue is full: a packet lost, as on any link.
                continue

    def next_due(self) -> float | None:
        return self._under_way[0][0] if self._under_way else None


def open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(
        ["ip", "link", "set", name, "mtu", str(MTU), "txqueuelen", "10000"], check=True, timeout=10
    )
    return device


def relay(directions: tuple[Direction, ...]) -> None:
    """Forward until the process is ended."""
    by_source = {direction.source: direction for direction in directions}
    while True:
        due = [time_due for direction in directions if (time_due := direction.next_due()) is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        # select, not poll: its timeout is in microseconds.
        readable, _, _ = select.select(list(by_source), [], [], wait_s)
        now = time.monotonic()
        for source in readable:
            by_source[source].take(now)
        for direction in directions:
            direction.deliver(time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round-trip-s", type=float, default=0.0)
    parser.add_argument("--rate-bytes", type=float, default=0.0)
    parser.add_argument("near")
    parser.add_argument("far")
    options = parser.parse_args()
    near, far = open_tun(options.near), open_tun(options.far)
    print("ready", flush=True)
    delay_s = options.round_trip_s / 2
    relay(
        (
            Direction(near, far, delay_s, options.rate_bytes),
            Direction(far, near, delay_s, options.rate_bytes),
        )
    )


if __name__ == "__main__":
    main()
