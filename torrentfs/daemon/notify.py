"""This module tells a service manager that a daemon is ready (sd_notify(3)); elsewhere it does nothing."""

import os
import socket


def notify_ready() -> None:
    """Say READY=1 to who started us with $NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        notifier.send(b"READY=1")
