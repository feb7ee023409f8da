"""This module makes hosts of network namespaces that share a switch; each has an IPv4 and an IPv6 address.

The switch is a bridge in a namespace of its own, so nothing of it shows on the machine.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

from contrib.grid import GridError, run

_numbers = count()


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with an address of each kind."""

    namespace: str
    four: str
    six: str

    @property
    def inside(self) -> Sequence[str]:
        """What a command that is to run there begins with."""
        return ["ip", "netns", "exec", self.namespace]


@contextmanager
def lan(*fours: str) -> Iterator[list[Host]]:
    """Yield one host for each of the IPv4 addresses *fours*; all of them reach each other directly."""
    tag = f"tfl{os.getpid() % 1_000_000}x{next(_numbers)}"
    switch = f"{tag}s"
    hosts = [Host(f"{tag}h{number}", four, f"fd99::{number + 1:x}") for number, four in enumerate(fours)]
    try:
        run(["ip", "netns", "add", switch])
        run(["ip", "-n", switch, "link", "add", "switch", "type", "bridge"])
        run(["ip", "-n", switch, "link", "set", "switch", "up"])
        for one in hosts:
            _plug(one, switch)
        yield hosts
    finally:
        for name in (switch, *(one.namespace for one in hosts)):
            with suppress(GridError):
                run(["ip", "netns", "delete", name])


def _plug(one: Host, switch: str) -> None:
    run(["ip", "netns", "add", one.namespace])
    ours = ["ip", "-n", one.namespace]
    port = f"p{one.namespace.rpartition('h')[2]}"
    run([*ours, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch])
    run(["ip", "-n", switch, "link", "set", port, "master", "switch", "up"])
    for device in ("lo", "eth0"):
        run([*ours, "link", "set", device, "up"])
    run([*ours, "addr", "add", f"{one.four}/24", "dev", "eth0"])
    run([*ours, "-6", "addr", "add", f"{one.six}/64", "dev", "eth0", "nodad"])
    # Hosts with addresses of several networks are neighbours here too.
    run([*ours, "route", "add", "default", "dev", "eth0"])
