"""This module reads the keeper's command line."""

WATCHDOG_S = 30.0
HELD_MAX = 256
"""Descriptors, far below the usual 1024 of a process."""
NAME_LENGTH_MAX = 200
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def is_name(text: str) -> bool:
    """Whether *text* may name a descriptor; systemd's store takes all such names too."""
    return 0 < len(text) <= NAME_LENGTH_MAX and NAME_CHARACTERS.issuperset(text)


class Options:
    """What the command line says. Each time here is an option: `--delay-max 5` sets *delay_max_s*."""

    watchdog_s = WATCHDOG_S  # how long a server that is ready may say nothing
    start_deadline_s = 60.0  # how long one may take until it is ready
    grace_s = 5.0  # how long one may take to stop, with its jobs waiting, or to exit by itself
    kill_s = 2.0  # how long a killed one may take: a thread of it may wait for what its successor does
    end_deadline_s = 30.0  # how long `end` may take, restarts included
    steady_s = 0.25  # one that was ready for so long is started again at once
    delay_s = 0.1  # before the third start in a row, doubled for each further one
    delay_max_s = 30.0

    def __init__(self, arguments: list[str]) -> None:
        """Raises: ValueError, StopIteration: these are not a keeper's."""
        self.foreground = False
        self.adopted: tuple[int, int] | None = None
        self.given: dict[str, int] = {}
        self.again: list[str] = []  # what another keeper for the same server is told
        left = iter(arguments)
        while (word := next(left)) != "--":
            attribute = word[2:].replace("-", "_") + "_s"
            name, _, number = word.partition("=")
            if word == "--foreground":
                self.foreground = True
                self.again.append(word)
            elif word == "--adopt":  # a pidfd, since a process's number may be another's by now; a socket
                self.adopted = int(next(left)), int(next(left))
            elif word.startswith("--") and attribute in vars(Options):
                self.again += word, next(left)
                setattr(self, attribute, float(self.again[-1]))
            elif is_name(name):
                self.given[name] = int(number)
            else:
                raise ValueError(word)
        self.command = [next(left), *left]
