"""This module builds a real software tree to publish: the running Python, able to run from a mount.

PREFIX/bin/pythonX.Y, libpython if Python was built with one, and the standard library with the .pyc files
it came with; on request site-packages too. Every source has a fresh .pyc: an import that must compile
measures the compiler.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER
from pathlib import Path

BUILD_TIMEOUT_S = 900
CHECKOUT = Path(__file__).resolve().parents[1]
VERSION = sysconfig.get_python_version()
LIBRARY = Path("lib") / f"python{VERSION}"
# Debian's Python looks for packages under a name of its own.
DEBIAN = "dist-packages" in Path(site.__file__).read_text()
SITE_PACKAGES = LIBRARY / ("dist-packages" if DEBIAN else "site-packages")


@dataclass(frozen=True, slots=True)
class PythonTree:
    """A Python installation at *prefix*; its mounted twin is one as well."""

    prefix: Path

    @property
    def interpreter(self) -> Path:
        return self.prefix / "bin" / f"python{VERSION}"

    def command(self, code: str) -> list[str]:
        """Return the command that runs *code* by this installation's own interpreter."""
        return [str(self.interpreter), "-s", "-c", code]

    def environment(self) -> dict[str, str]:
        """Return an environment in which all of Python comes from this prefix: library and packages.

        The C library, OpenSSL and SQLite are the host's. One thread for BLAS: a pool's start-up is not ours
        to time.
        """
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LD_LIBRARY_PATH": str(self.prefix / "lib"),
            "PYTHONHOME": str(self.prefix),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }


def build(tree: PythonTree) -> None:
    """Make *tree* with the interpreter and its standard library; packages come after that."""
    tree.interpreter.parent.mkdir(parents=True)
    # sys.executable is a virtual environment's link; only this private name gives what it was made from.
    shutil.copy2(Path(sys._base_executable).resolve(), tree.interpreter)  # type: ignore[attr-defined]
    (tree.interpreter.parent / "python3").symlink_to(tree.interpreter.name)
    (tree.prefix / "lib").mkdir()
    for shared in shared_libraries():
        shutil.copy2(shared, tree.prefix / "lib" / shared.name, follow_symlinks=False)
    not_the_library = shutil.ignore_patterns("site-packages", "dist-packages")
    shutil.copytree(
        sysconfig.get_path("stdlib"), tree.prefix / LIBRARY, symlinks=True, ignore=not_the_library
    )
    (tree.prefix / SITE_PACKAGES).mkdir()


def shared_libraries() -> list[Path]:
    """Return libpython under all its names, if the interpreter loads one."""
    name, directory = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if not name or ".so" not in name:
        return []
    return sorted(Path(directory).glob(name.partition(".so")[0] + ".so*"))


def add_own_packages(tree: PythonTree) -> None:
    """Copy the environment's packages, but not its .pth files: one of them points to this checkout."""
    shutil.copytree(
        sysconfig.get_path("purelib"),
        tree.prefix / SITE_PACKAGES,
        symlinks=True,
        ignore=shutil.ignore_patterns("*.pth", "torrentfs-*"),
        dirs_exist_ok=True,
    )


def add_wheels(tree: PythonTree, *names: str) -> None:
    """Install packages from wheels, in the versions that constraints.txt pins, and what they depend on."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--only-binary", ":all:", "--no-compile", "--constraint", str(CHECKOUT / "constraints.txt")]
    subprocess.run(
        [*pip, *options, "--target", str(tree.prefix / SITE_PACKAGES), *names],
        check=True,
        timeout=BUILD_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


def compile_sources(tree: PythonTree) -> None:
    """Compile what has no fresh .pyc; sources that do not compile (parsers' test cases) stay as they are.

    Raises: RuntimeError: a source is left that an import would compile again.
    """
    compiler = [str(tree.interpreter), "-W", "ignore", "-m", "compileall", "-qq", "-j", "0"]
    subprocess.run(
        [*compiler, "-s", str(tree.prefix), str(tree.prefix / "lib")],
        env=tree.environment(),
        timeout=BUILD_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if stale := next(stale_sources(tree.prefix), None):
        raise RuntimeError(f"{stale} has no fresh .pyc")


def stale_sources(prefix: Path) -> Iterator[Path]:
    """Yield the sources that an import would compile again: no .pyc, or one of another mtime or size."""
    for source in (prefix / LIBRARY).rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        if not compiled.exists():
            if compiles(source):
                yield source
            continue
        with compiled.open("rb") as file:
            header = file.read(16)
        status = source.stat()
        fresh = int(status.st_mtime).to_bytes(4, "little") + (status.st_size & 0xFFFFFFFF).to_bytes(
            4, "little"
        )
        unchecked = int.from_bytes(header[4:8], "little") == 0b01  # PEP 552: by hash, and never compared
        if header[:4] != MAGIC_NUMBER or not (unchecked or header[8:16] == fresh):
            yield source


def compiles(source: Path) -> bool:
    try:
        compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def count(prefix: Path) -> tuple[int, int]:
    """Return the number of regular files under *prefix* and the sum of their sizes in bytes."""
    files = size = 0
    for directory, _, names in os.walk(prefix):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                files += 1
                size += path.stat().st_size
    return files, size
