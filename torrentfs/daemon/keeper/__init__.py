"""The keeper: a small process that holds descriptors and starts a server again when that dies.

It knows names and descriptors, not what they are for: mounts, trees and settings are the server's. It
outlives every server, and so imports next to nothing. Run as `[OPTION…] [NAME=DESCRIPTOR…] -- COMMAND…`, it
runs COMMAND with `--keeper DESCRIPTOR` appended: the server's end of a SOCK_SEQPACKET pair. A message on it
is UTF-8, `WORD` or `WORD REST`, with at most one descriptor beside it; `keeping` is the server's side.

    server → keeper
    prepared            it is imported and waits for what is held, and for `start`
    hold NAME   +fd     keep this from now on, in place of one of that name
    drop NAME
    ready REST          all that was held is served; REST is for whoever started the keeper
    failed REST         it cannot start, and exits next
    alive               sent every quarter of --watchdog
    log         +fd     from now on, this is where what the keeper has to say goes
    offer NAME  +fd     for the next reload: held in place of one of that name if, and only if, that succeeds
    reload              start a successor
    suspended           in answer to `suspend`: it uses nothing any more that the successor needs
    done                nothing is left to serve; it exits next, and the keeper with it

    keeper → server
    held NAME   +fd     for each one; before `start`
    restarts COUNT REST how often it was started again, and why the last one ended; before `start`, if it was
    successor           a predecessor waits, suspended, and resumes if this one fails; before `start`
    start REST          go; REST is the options that another keeper for the same server needs
    suspend             stop and let go of all, but stay
    resume REST         there is no successor, for this reason: serve on
    leave               the successor serves: exit at once
    end                 end for good, and say `done`; may come at once after `start`

When the very first server does not get ready it is not started again: whoever started the keeper is told on
standard output, one line of JSON, and the keeper exits as that server did. `--foreground`: nothing is said
there, and the server shares standard error.
"""

from torrentfs.daemon.keeper.channel import MESSAGE_MAX
from torrentfs.daemon.keeper.options import HELD_MAX, WATCHDOG_S, is_name

__all__ = ["HELD_MAX", "MESSAGE_MAX", "WATCHDOG_S", "is_name"]
