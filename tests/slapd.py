"""This module gives tests Debian's slapd with one site's entry, as ALICE has them, at a port of loopback."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ldap3

from contrib.grid import await_port, free_port, process

DEADLINE_S = 30
BASE = "name=Subatech-CREAM,ou=CE,ou=Services,ou=Subatech,ou=Sites,o=alice,dc=cern,dc=ch"
ROOT, PASSWORD = "cn=admin,o=alice,dc=cern,dc=ch", "test"
TEXTS = ("installMethod", "siteNetwork", "siteSeeder", "siteMirror", "uploadLimit", "localDiscovery")
CONFIGURATION = """
include /etc/ldap/schema/core.schema
pidfile {directory}/pid
{types}
objectclass ( 1.3.6.1.4.1.55555.2.1 NAME 'softwareSite' SUP top STRUCTURAL MUST name MAY ( {names} ) )
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix "o=alice,dc=cern,dc=ch"
rootdn "{root}"
rootpw {password}
directory {directory}/db
access to * by * read
"""
TYPE = (
    "attributetype ( 1.3.6.1.4.1.55555.1.{number} NAME '{name}' EQUALITY caseIgnoreMatch"
    " SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )"
)


@dataclass(frozen=True, slots=True)
class Slapd:
    """A running server."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    def put(self, **attributes: list[str]) -> None:
        """Give the site's entry these *attributes*, in place of what it had of them."""
        with ldap3.Connection(self.url, ROOT, PASSWORD, auto_bind=True, raise_exceptions=True) as connection:
            changes = {name: [(ldap3.MODIFY_REPLACE, values)] for name, values in attributes.items()}
            connection.modify(BASE, changes)


def entries() -> str:
    """Return the site's entry and those above it, in LDIF."""
    names = BASE.split(",")
    records = []
    for start in range(len(names) - 3, -1, -1):
        kind, _, value = names[start].partition("=")
        of = {"o": "organization", "ou": "organizationalUnit", "name": "softwareSite"}[kind]
        records.append(f"dn: {','.join(names[start:])}\nobjectClass: {of}\n{kind}: {value}\n")
    return "\n".join(records)


@contextmanager
def slapd(directory: Path) -> Iterator[Slapd]:
    """Run a server whose data is in *directory*, where it has an entry without settings."""
    (directory / "db").mkdir(parents=True)
    configuration = directory / "slapd.conf"
    types = "\n".join(TYPE.format(number=number, name=name) for number, name in enumerate(TEXTS, 1))
    configuration.write_text(
        CONFIGURATION.format(
            directory=directory, types=types, names=" $ ".join(TEXTS), root=ROOT, password=PASSWORD
        )
    )
    subprocess.run(
        ["/usr/sbin/slapadd", "-f", configuration], input=entries(), text=True, check=True, timeout=DEADLINE_S
    )
    port = free_port()
    # -d keeps it in the foreground, so that it ends with the test.
    words = ["/usr/sbin/slapd", "-d", "0", "-h", f"ldap://127.0.0.1:{port}", "-f", str(configuration)]
    with process(words, directory / "log") as running:
        await_port(running, "127.0.0.1", port, directory / "log")
        yield Slapd(port, running.pid)
