"""A disk whose power can be cut: an ext4 filesystem on a loop device."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FS_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32) of linux/fs.h."""
NO_LOG_FLUSH = 2
"""FS_SHUTDOWN_FLAGS_NOLOGFLUSH: at once, with nothing written any more."""


class Disk:
    """A filesystem at `place`."""

    def __init__(self, image: Path, place: Path) -> None:
        self.place = place
        self._image = image

    def fail(self) -> None:
        """Cut the power: what has not reached the disk never does, and every use is an I/O error."""
        directory = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(directory)

    def mount(self) -> None:
        """Mount what is on the disk; nobody may use what was there before."""
        subprocess.run(["mount", "-o", "loop", self._image, self.place], check=True)

    def unmount(self, *, lazily: bool = False) -> None:
        """Unmount it; *lazily*: though somebody uses it yet."""
        subprocess.run(["umount", *(["--lazy"] if lazily else []), self.place], check=True)


@contextmanager
def disk(image: Path, place: Path, size: int) -> Iterator[Disk]:
    """Give a disk of *size* bytes, mounted at *place*; root only."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    place.mkdir(exist_ok=True)
    made = Disk(image, place)
    made.mount()
    try:
        yield made
    finally:
        with suppress(subprocess.CalledProcessError):  # where the test has done so
            made.unmount(lazily=True)  # a store of a test that failed is open still
