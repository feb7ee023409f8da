"""This module prepares what is published: a Python installation of some 20,000 files, and one large file.

Both are kept in a directory of the user's choice and built once.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from contrib import python_tree
from contrib.python_tree import PythonTree

LAYOUT = 2  # raise it when the tree is built in another way: cached ones are then built anew
HEAVY_PACKAGES = ("numpy", "scipy")
CHUNK_LENGTH = 1024 * 1024


def tree(directory: Path) -> PythonTree:
    """Return the Python installation kept under *directory*: its library, our packages, numpy and scipy."""
    prefix = directory / f"python-{recipe()[:16]}"
    if not prefix.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix="building-") as temporary:
            building = PythonTree(Path(temporary) / "python")
            python_tree.build(building)
            python_tree.add_own_packages(building)
            python_tree.add_wheels(building, *HEAVY_PACKAGES)
            python_tree.compile_sources(building)
            building.prefix.rename(prefix)
    return PythonTree(prefix)


def recipe() -> str:
    """Return a digest of all that the tree is made from."""
    constraints = (python_tree.CHECKOUT / "constraints.txt").read_text()
    ingredients = [LAYOUT, sys.version, sys.base_prefix, HEAVY_PACKAGES, constraints]
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()


def large_file(directory: Path, length: int) -> Path:
    """Return a file of *length* bytes: zeros (written, no hole), then as much random data."""
    path = directory / f"half-zeros-{length}"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        building = path.with_name(f"building-{path.name}-{os.getpid()}")
        try:
            with building.open("wb") as file:
                for start in range(0, length, CHUNK_LENGTH):
                    zeros = start < length // 2
                    file.write(bytes(CHUNK_LENGTH) if zeros else os.urandom(CHUNK_LENGTH))
            building.rename(path)
        finally:
            building.unlink(missing_ok=True)
    return path
