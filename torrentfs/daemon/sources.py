"""This module says whom bytes may come from, by the word of settings and catalog. Pure."""

from ipaddress import ip_address

from torrentfs.config import MountConfiguration, SiteSettings, parse_address, parse_network
from torrentfs.node import Sources
from torrentfs.node.names import is_numeric
from torrentfs.repository.catalog import Catalog


def sources(configuration: MountConfiguration, catalog: Catalog) -> Sources:
    """Return the sources, nearest first: the site's seeders and mirrors, then those beyond.

    Where the site's networks are known, a seeder that only the catalog names must lie in them, and peers
    beyond are a last resort: every node of the site would fetch the same from them.
    """
    site, mirrors = configuration.node.site, mirror_urls(configuration)
    near = dict.fromkeys(map(parse_address, site.seeders))
    named = dict.fromkeys(map(parse_address, configuration.peers))
    listed = dict.fromkeys(map(parse_address, catalog.seeders))
    if not site.networks:
        return Sources(mirrors, tuple(near | named | listed))
    near |= {peer: None for peer in named | listed if _is_within(site, peer[0])}
    return Sources(mirrors, tuple(near), tuple(peer for peer in named if peer not in near))


def mirror_urls(configuration: MountConfiguration) -> tuple[str, ...]:
    """Return the URLs of mirrors to ask, in order: the site's, the repository, those beyond."""
    urls = (*configuration.node.site.mirrors, configuration.repository, *configuration.mirrors)
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


def _is_within(site: SiteSettings, host: str) -> bool:
    """Tell whether *host* is an address in the site's networks; a name is not: it may be anywhere."""
    return is_numeric(host) and any(ip_address(host) in parse_network(network) for network in site.networks)
