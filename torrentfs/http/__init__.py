"""The web side: files and, later, the same reads as a mount's over HTTP. It knows nothing of FUSE."""

from torrentfs.http.pull import Pull
from torrentfs.http.server import bind, serve
from torrentfs.http.static import PublicFiles, application
from torrentfs.http.tracker import Tracker

__all__ = ["PublicFiles", "Pull", "Tracker", "application", "bind", "serve"]
