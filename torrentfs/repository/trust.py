"""This module makes and signs TUF metadata for a publisher; nodes verify them in `update`.

Offline root and targets keys only delegate; each namespace has a role with an online key of its own; snapshot
and timestamp are online keys of the one place that commits. The clock is the caller's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # a re-export
from tuf.api.metadata import (  # type: ignore[attr-defined]  # re-exports
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from torrentfs.errors import RepositoryError
from torrentfs.repository import durable
from torrentfs.repository.shards import DEFAULT

OFFLINE_LIFE: Final = timedelta(days=5 * 365)
"""Root and targets: their keys lie in a safe, and renewing them is a ceremony."""
ROLE_LIFE: Final = timedelta(days=365)
ROLE_RENEWAL: Final = timedelta(days=180)
"""With less than this left, a role is signed anew along with the snapshot."""
ONLINE_LIFE: Final = timedelta(days=30)
"""Snapshot and timestamp: for so long can a mirror that is held back pass for current."""

EXTENSION: Final = "x-torrentfs"
ONLINE_KEYS: Final = (DEFAULT.role, "snapshot", "timestamp")
OFFLINE_KEYS: Final = ("root", "targets")

_SERIALIZER = JSONSerializer(compact=True)


@dataclass(frozen=True, slots=True)
class Keys:
    """Signers by the name of the role that they sign for."""

    signers: Mapping[str, CryptoSigner]

    def sign(self, role: str, signed: Root | Targets | Snapshot | Timestamp) -> bytes:
        """Return the file of a role's metadata."""
        metadata: Metadata[Any] = Metadata(signed)  # its type variable admits one role at a time
        metadata.sign(self.signers[role])
        return metadata.to_bytes(_SERIALIZER)


def generate() -> tuple[Keys, dict[str, bytes]]:
    """Make a new key for every role; return them, and each as PEM (PKCS #8, not encrypted)."""
    private = {role: Ed25519PrivateKey.generate() for role in (*OFFLINE_KEYS, *ONLINE_KEYS)}
    keys = Keys({role: CryptoSigner(key) for role, key in private.items()})
    pem = {
        role: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for role, key in private.items()
    }
    return keys, pem


def load_online(private: Path, root: bytes, targets: bytes) -> Keys:
    """Read the keys that publishing needs, for which the files *root* and *targets* have to vouch.

    Raises:
        RepositoryError: one is missing, cannot be used, or is not the repository's: nodes would refuse
            what it signs.
    """
    keys = Keys({role: _load(private / f"{role}.pem") for role in ONLINE_KEYS})
    believed = _believed(root, targets)
    for role, signer in keys.signers.items():
        if signer.public_key.keyid not in believed[role]:
            raise RepositoryError(
                f"{private / role}.pem is not this repository's key: no node would take what it signs"
            )
    return keys


def _believed(root: bytes, targets: bytes) -> dict[str, list[str]]:
    """Return the ids of the keys that may sign for each online role."""
    try:
        roles = Metadata[Root].from_bytes(root).signed.roles
        delegations = Metadata[Targets].from_bytes(targets).signed.delegations
    except Exception as error:
        raise RepositoryError(f"the current root or targets cannot be read: {error}") from error
    delegated = delegations.roles if delegations and delegations.roles else {}
    online = {role: roles[role].keyids for role in ("snapshot", "timestamp")}
    return online | {DEFAULT.role: delegated[DEFAULT.role].keyids if DEFAULT.role in delegated else []}


def found(keys: Keys, now: datetime) -> dict[str, bytes]:
    """Return the metadata files that the offline keys sign, by name: who may sign what."""
    root = Root(version=1, expires=now + OFFLINE_LIFE, consistent_snapshot=True)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(keys.signers[role].public_key, role)
    role_key = keys.signers[DEFAULT.role].public_key
    delegated = DelegatedRole(
        name=DEFAULT.role,
        keyids=[role_key.keyid],
        threshold=1,
        terminating=True,
        paths=[f"catalog/{DEFAULT.role}/*"],
        unrecognized_fields={EXTENSION: {"namespace": DEFAULT.number, "prefix": DEFAULT.prefix}},
    )
    delegations = Delegations({role_key.keyid: role_key}, {DEFAULT.role: delegated})
    targets = Targets(version=1, expires=now + OFFLINE_LIFE, delegations=delegations)
    return {"1.root.json": keys.sign("root", root), "1.targets.json": keys.sign("targets", targets)}


def sign_role(keys: Keys, version: int, files: Mapping[str, bytes], now: datetime) -> bytes:
    """Sign the target files of the default namespace."""
    targets = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()}
    role = Targets(version=version, expires=now + ROLE_LIFE, targets=targets)
    return keys.sign(DEFAULT.role, role)


def first_snapshot(keys: Keys, targets: bytes, role: bytes, now: datetime) -> bytes:
    """Sign the snapshot of a new repository, of its files ``1.targets.json`` and ``1.default.json``."""
    meta = {"targets.json": _meta(1, targets), f"{DEFAULT.role}.json": _meta(1, role)}
    return keys.sign("snapshot", Snapshot(version=1, expires=now + ONLINE_LIFE, meta=meta))


def next_snapshot(keys: Keys, last: bytes, role: tuple[int, bytes] | None, now: datetime) -> bytes:
    """Sign what follows the snapshot *last*, with another version and file of the default role if given.

    Raises:
        RepositoryError: *last* cannot be read.
    """
    try:
        snapshot = Metadata[Snapshot].from_bytes(last).signed
    except Exception as error:
        raise RepositoryError(f"the current snapshot cannot be read: {error}") from error
    snapshot.version += 1
    snapshot.expires = now + ONLINE_LIFE
    if role:
        snapshot.meta[f"{DEFAULT.role}.json"] = _meta(*role)
    return keys.sign("snapshot", snapshot)


def sign_timestamp(keys: Keys, version: int, snapshot: tuple[int, bytes], now: datetime) -> bytes:
    """Sign the version and file of a snapshot as the current one."""
    timestamp = Timestamp(version=version, expires=now + ONLINE_LIFE, snapshot_meta=_meta(*snapshot))
    return keys.sign("timestamp", timestamp)


def save(private: Path, pem: Mapping[str, bytes]) -> None:
    """Write keys where only their owner can read them."""
    durable.write({private / f"{role}.pem": data for role, data in pem.items()}, mode=0o600)


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


def _load(path: Path) -> CryptoSigner:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError as error:
        raise RepositoryError(f"{path} is missing: without this key nothing can be committed") from error
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from error
    except TypeError as error:
        raise RepositoryError(f"{path} has a password: keys are kept without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # What the library says of it is a page long.
        raise RepositoryError(f"{path} is damaged, or no private key in PEM: restore it") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RepositoryError(f"{path} is not an Ed25519 key")
    return CryptoSigner(key)
