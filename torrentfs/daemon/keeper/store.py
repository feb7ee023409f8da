"""This module holds descriptors by name, here and in systemd's store, which has them when we die."""

import _socket
import os

from torrentfs.daemon.keeper.channel import Channel, Descriptor
from torrentfs.daemon.keeper.lines import log


def manager() -> Channel:
    """Return the way to the service manager: sd_notify(3). Without one, what is said there is lost."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    address = os.environ.get("NOTIFY_SOCKET", "")
    try:
        if address.startswith(("/", "@")):
            socket.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        log(f"{address} does not answer: {error.strerror}")
    return Channel(socket, is_heard=False)


def listened() -> dict[str, int]:
    """Return what the service manager kept of our predecessor's, by name: sd_listen_fds(3)."""
    pid, count, names = (os.environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    return dict(zip(names.split(":"), range(3, 3 + int(count)), strict=False))


class Store:
    """What is held, and what a candidate has in place of it until it is ready, or is not."""

    def __init__(self) -> None:
        self.manager = manager()
        self.held: dict[str, Descriptor] = {}
        self.offers: dict[str, Descriptor | None] = {}  # None: no more

    def take(self, numbers: dict[str, int], *, is_stored: bool) -> None:
        """Hold what was inherited; *is_stored*: by the service manager too."""
        for name, number in numbers.items():
            try:
                os.set_inheritable(number, False)
            except OSError as error:
                log(f"descriptor {number}, {name}: {error.strerror}")
                continue
            if is_stored:
                self.held[name] = Descriptor(number)
            else:
                self.hold(name, Descriptor(number))

    def hold(self, name: str, descriptor: Descriptor | None) -> None:
        """Hold *descriptor* in place of one of that name; None: no more."""
        if self.held.pop(name, None):
            self.manager.say(f"FDSTOREREMOVE=1\nFDNAME={name}")
        if descriptor:
            self.held[name] = descriptor
            # FDPOLL=0: the store lets nothing go by itself, a mount that hung up neither.
            self.manager.say(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def settle(self, *, succeeded: bool) -> None:
        """Make what was offered what is held, or forget it."""
        for name, descriptor in self.offers.items() if succeeded else ():
            self.hold(name, descriptor)
        self.offers.clear()
