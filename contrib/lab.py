"""This module is a laboratory: hosts of network namespaces, at sites around a wide-area link to an origin.

    origin ── link (delay, rate) ── router ─┬─ switch of site 1 ── box, workers
                                            └─ switch of site 2 ── …

The router counts what passes, and what may not pass: that is led into a device of its own, which counts
packets and loses them. Every link of a site has a rate. Nothing of it shows on the machine but the names of
namespaces, and processes run inside by `nsenter`, so that their mounts are the machine's.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from contrib.grid import GridError, await_line, process, run, undisturbed

MTU = 9000
"""Of all links: a packet costs the relay the same whatever its length."""
FAR, NEAR = "198.18.0.2", "198.18.0.1"
"""Origin and router on the wide-area link; RFC 2544 sets these addresses aside for benchmarks."""
NOWHERE, NOWHERE_TABLE = "nowhere", "100"
LAN_RATE = "1gbit"

_numbers = count()


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with an address of each kind."""

    namespace: str
    four: str
    six: str = ""

    @property
    def inside(self) -> Sequence[str]:
        """What a command that is to run there begins with."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]


@dataclass(frozen=True, slots=True)
class Distance:
    """What lies between sites and origin: round-trip time, and bytes per second each way."""

    round_trip_s: float
    rate_bytes: float


@dataclass(slots=True)
class Site:
    """A switch and its hosts: the first may be a box, the others are workers."""

    switch: str
    network: str
    hosts: list[Host] = field(default_factory=list)


@contextmanager
def lan(*fours: str) -> Iterator[list[Host]]:
    """Yield one host for each of the IPv4 addresses *fours*; all of them reach each other directly."""
    with ExitStack() as stack:
        tag = _tag()
        switch = _switch(stack, f"{tag}s")
        hosts = [Host(f"{tag}h{number}", four, f"fd99::{number + 1:x}") for number, four in enumerate(fours)]
        for number, host in enumerate(hosts):
            _plug(stack, host, switch, number)
            # Hosts with addresses of several networks are neighbours here too.
            run(["ip", "-n", host.namespace, "route", "add", "default", "dev", "eth0"])
        yield hosts


class Laboratory:
    """Sites around an origin; see the module."""

    def __init__(self, stack: ExitStack, sizes: Sequence[int], distance: Distance, directory: Path) -> None:
        """Build it, until *stack* ends; *sizes* are the numbers of hosts of its sites."""
        tag = _tag()
        self._router = f"{tag}r"
        self.origin = Host(f"{tag}o", FAR)
        for namespace in (self._router, self.origin.namespace):
            _namespace(stack, namespace)
        self._inside = Host(self._router, NEAR).inside
        for kind in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            run([*self._inside, "sysctl", "-qw", f"net.{kind}=1"])
        self._join_origin(stack, distance, directory / f"{tag}-relay.log")
        self._build_nowhere()
        self.sites = [self._site(stack, tag, number, size) for number, size in enumerate(sizes, 1)]

    def wide_area_bytes(self) -> int:
        """Return how many bytes came from the origin to all sites so far, headers of packets included."""
        return self._counters("near")["rx"]["bytes"]

    def lost_packets(self) -> int:
        """Return how many packets were led nowhere so far."""
        return self._counters(NOWHERE)["tx"]["packets"]

    def forbid(self, source: str, target: str) -> None:
        """Lead nowhere what goes from *source* to *target*, networks or addresses; and count it."""
        self._rule("add", source, target, NOWHERE_TABLE)

    def permit(self, source: str, target: str) -> None:
        """Take back `forbid`."""
        self._rule("del", source, target, NOWHERE_TABLE)

    def allow(self, source: str, target: str) -> None:
        """Let pass what goes from *source* to *target*, whatever was forbidden before."""
        # A later rule comes before earlier ones (ip-rule(8)).
        self._rule("add", source, target, "main")

    def silence(self, site: Site, host: Host) -> None:
        """Have a host hear and say nothing any more, without a word to anybody."""
        self._port(site, host, "down")

    def wake(self, site: Site, host: Host) -> None:
        """Take back `silence`."""
        self._port(site, host, "up")

    def _port(self, site: Site, host: Host, state: str) -> None:
        run(["ip", "-n", site.switch, "link", "set", f"p{site.hosts.index(host)}", state])

    def _rule(self, what: str, source: str, target: str, table: str) -> None:
        rule = ["from", source, "to", target, "lookup", table]
        run(["ip", "-n", self._router, "rule", what, *rule])

    def _counters(self, device: str) -> dict[str, dict[str, int]]:
        told = json.loads(run(["ip", "-n", self._router, "-s", "-j", "link", "show", "dev", device]))
        found: dict[str, dict[str, int]] = told[0]["stats64"]
        return found

    def _join_origin(self, stack: ExitStack, distance: Distance, log: Path) -> None:
        """Build the wide-area link: two TUN devices and a relay, as not every kernel can delay packets."""
        options = ["--round-trip-s", str(distance.round_trip_s), "--rate-bytes", str(distance.rate_bytes)]
        command = [*self._inside, sys.executable, "-m", "contrib.bench.relay", *options, "near", "far"]
        relay = stack.enter_context(process(command, log))
        await_line(relay, log, "ready")
        router, origin = ["ip", "-n", self._router], ["ip", "-n", self.origin.namespace]
        run([*router, "link", "set", "far", "netns", self.origin.namespace])
        for ours, device, address in ((router, "near", NEAR), (origin, "far", FAR)):
            run([*ours, "address", "add", f"{address}/30", "dev", device])
            run([*ours, "link", "set", device, "up"])
        run([*origin, "route", "add", "default", "via", NEAR])

    def _build_nowhere(self) -> None:
        ours = ["ip", "-n", self._router]
        run([*ours, "link", "add", NOWHERE, "type", "veth", "peer", "name", "beyond"])
        # Without the kernel's own packets (ARP, IPv6 multicast reports): what is led here is to be counted.
        for device in (NOWHERE, "beyond"):
            run([*self._inside, "sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1"])
            silent = ["arp", "off", "addrgenmode", "none", "mtu", str(MTU), "up"]
            run([*ours, "link", "set", device, *silent])
        run([*ours, "route", "add", "default", "dev", NOWHERE, "table", NOWHERE_TABLE])

    def _site(self, stack: ExitStack, tag: str, number: int, size: int) -> Site:
        network = f"10.99.{number}"
        site = Site(_switch(stack, f"{tag}s{number}"), f"{network}.0/24")
        gateway = f"site{number}"
        ours = ["ip", "-n", self._router]
        run([*ours, "link", "add", gateway, "type", "veth", "peer", "name", "uplink", "netns", site.switch])
        run(["ip", "-n", site.switch, "link", "set", "uplink", "mtu", str(MTU), "master", "switch", "up"])
        run([*ours, "address", "add", f"{network}.254/24", "dev", gateway])
        run([*ours, "link", "set", gateway, "mtu", str(MTU), "up"])
        for place in range(size):
            host = Host(f"{tag}s{number}h{place}", f"{network}.{place + 1}", f"fd99:{number}::{place + 1:x}")
            _plug(stack, host, site.switch, place)
            run(["ip", "-n", host.namespace, "route", "add", "default", "via", f"{network}.254"])
            site.hosts.append(host)
        return site


def _tag() -> str:
    return f"tfl{os.getpid() % 1_000_000}x{next(_numbers)}"


def _namespace(stack: ExitStack, name: str) -> None:
    run(["ip", "netns", "add", name])
    stack.callback(_delete, name)
    run(["ip", "-n", name, "link", "set", "lo", "up"])


def _delete(name: str) -> None:
    with undisturbed(), suppress(GridError):
        run(["ip", "netns", "delete", name])


def _switch(stack: ExitStack, name: str) -> str:
    _namespace(stack, name)
    run(["ip", "-n", name, "link", "add", "switch", "mtu", str(MTU), "type", "bridge"])
    run(["ip", "-n", name, "link", "set", "switch", "up"])
    return name


def _plug(stack: ExitStack, host: Host, switch: str, number: int) -> None:
    """Make *host*, and a link from it to port *number* of *switch*."""
    _namespace(stack, host.namespace)
    ours, port = ["ip", "-n", host.namespace], f"p{number}"
    run([*ours, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch])
    run(["ip", "-n", switch, "link", "set", port, "mtu", str(MTU), "master", "switch", "up"])
    run([*ours, "link", "set", "eth0", "mtu", str(MTU), "up"])
    run([*ours, "addr", "add", f"{host.four}/24", "dev", "eth0"])
    run([*ours, "-6", "addr", "add", f"{host.six}/64", "dev", "eth0", "nodad"])
    shape = ["root", "tbf", "rate", LAN_RATE, "burst", "256kb", "latency", "50ms"]
    run(["tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", *shape])
    run(["tc", "-n", switch, "qdisc", "add", "dev", port, *shape])
