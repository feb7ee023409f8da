"""This module asks an LDAP directory for one entry; it runs as a short-lived process of its own.

So neither a silent server, nor one that sends without end, nor the library's memory get hold of a daemon: the
caller, `torrentfs.daemon.entry`, bounds the time, this process its memory. Question and answer are JSON.
"""

import math
import resource
import ssl
import sys
from urllib.parse import urlsplit

import ldap3
import msgspec
from ldap3.core.exceptions import LDAPException, LDAPNoSuchObjectResult

from torrentfs.daemon.entry import Answer, Question
from torrentfs.errors import FetchError, TorrentfsError

MEMORY_BYTES_MAX = 512 * 1024 * 1024
VALUES_MAX = 1024
VALUE_LENGTH_MAX = 4096
ERROR_LENGTH_MAX = 200
PORTS = {"ldap": 389, "ldaps": 636}


def answer(question: Question) -> dict[str, list[str]]:
    """Return the values of the entry's attributes; those that it has not are missing.

    Raises: FetchError.
    """
    parts = urlsplit(question.server)
    secure = parts.scheme == "ldaps"
    server = ldap3.Server(
        parts.hostname,
        parts.port or PORTS[parts.scheme],
        use_ssl=secure,
        tls=ldap3.Tls(validate=ssl.CERT_REQUIRED) if secure else None,
        get_info=ldap3.NONE,
        connect_timeout=question.timeout_s,
    )
    # No referrals: a server must not send us to others.
    connection = ldap3.Connection(
        server,
        read_only=True,
        auto_referrals=False,
        raise_exceptions=True,
        receive_timeout=math.ceil(question.timeout_s),
    )
    try:
        connection.open()
        connection.bind()
        connection.search(
            question.base,
            "(objectClass=*)",
            search_scope=ldap3.BASE,
            attributes=question.attributes,
            size_limit=1,
        )
        found = [one for one in connection.response or () if one["type"] == "searchResEntry"]
    except LDAPNoSuchObjectResult:
        raise FetchError("there is no such entry") from None
    except LDAPException as error:
        raise FetchError(" ".join(str(error).split())[:ERROR_LENGTH_MAX] or type(error).__name__) from None
    if not found:
        raise FetchError("there is no such entry")
    return _values(question.attributes, found[0]["raw_attributes"])


def _values(names: list[str], raw: dict[str, list[bytes]]) -> dict[str, list[str]]:
    """Return what *raw* has of the attributes *names*; a server spells them as its schema does.

    Raises: FetchError: more or longer values than settings have, or no text.
    """
    spelled = {name.lower(): values for name, values in raw.items()}
    found = {}
    for name in names:
        values = spelled.get(name.lower()) or []
        if len(values) > VALUES_MAX or any(len(value) > VALUE_LENGTH_MAX for value in values):
            raise FetchError(
                f"{name}: more than {VALUES_MAX} values, or longer than {VALUE_LENGTH_MAX} bytes"
            )
        try:
            texts = [value.decode().strip() for value in values]
        except UnicodeDecodeError:
            raise FetchError(f"{name}: not UTF-8") from None
        if texts:
            found[name] = texts
    return found


def main() -> None:
    """Answer the question at standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    try:
        question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
        found = Answer(answer(question))
    except TorrentfsError as error:
        found = Answer(error=str(error))
    except MemoryError:
        found = Answer(error="it sends more than an entry can be")
    except Exception as error:  # the library raises anything at what is no LDAP
        words = " ".join(str(error).split())[:ERROR_LENGTH_MAX]
        found = Answer(error=f"what it sends cannot be read: {type(error).__name__}: {words}")
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
