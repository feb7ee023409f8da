"""The web side: files and, later, the same reads as a mount's over HTTP. It knows nothing of FUSE."""

from torrentfs.http.server import bind, serve
from torrentfs.http.static import PublicFiles, application

__all__ = ["PublicFiles", "application", "bind", "serve"]
