"""This module fills variables of the mount into the targets of symbolic links: `$(NAME)`, `$(NAME:-default)`.

One published link leads each node to what fits it, as `$(ARCH:-el9-x86_64)/bin`. A variable without a value
and without a default is left as it was published: the link leads nowhere, and says why.
"""

import re
from collections.abc import Mapping
from typing import Final

TARGET_LENGTH_MAX: Final = 4095
"""PATH_MAX less its NUL (linux/limits.h): no link can be longer."""
_VARIABLE: Final = re.compile(rb"\$\(([A-Za-z_][A-Za-z0-9_]{0,63})(?::-([^()]*))?\)")
_SIGN: Final = b"$("


def resolve(target: bytes, variables: Mapping[bytes, bytes]) -> bytes:
    """Return what a link's *target* is on this mount. One that would become too long stays as it was."""
    if _SIGN not in target:
        return target

    def value(found: re.Match[bytes]) -> bytes:
        known = variables.get(found[1], found[2])
        return found[0] if known is None else known

    resolved = _VARIABLE.sub(value, target)
    return resolved if 0 < len(resolved) <= TARGET_LENGTH_MAX else target
