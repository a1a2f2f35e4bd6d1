"""A PostgreSQL server of its own for tests, on a socket in a folder, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_OPTIONS = "-c listen_addresses='' -c fsync=off -c max_connections=60"


def missing() -> str:
    """Why there can be no server here; "" if there can be one."""
    if _binaries() is None:
        return "PostgreSQL is not installed (Debian's package is postgresql)"
    if find_spec("psycopg") is None:
        return "psycopg is not installed"
    return "" if os.geteuid() or _user() else "the server refuses to run as root, and nobody else is"


class Server:
    """A running server; `url` is that of its database."""

    def __init__(self, home: Path, binaries: Path) -> None:
        self._home = home
        self._binaries = binaries
        self.url = f"postgresql://postgres@/postgres?host={home}"

    def make_database(self, name: str) -> str:
        """The URL of a new database."""
        self._call("createdb", "-h", str(self._home), "-U", "postgres", name)
        return self.url.replace("/postgres?", f"/{name}?")

    def restart(self, *, seconds: float = 0.0) -> None:
        """Stop the server at once, as a crash does, and start it again after a while."""
        self._control("stop", "-m", "immediate")
        if seconds:
            subprocess.run(["sleep", str(seconds)], check=True)
        self.start()

    def start(self) -> None:
        """Start it."""
        options = f"{_OPTIONS} -k {self._home}"
        self._control("start", "-l", str(self._home / "log"), "-o", options)

    def initialise(self) -> None:
        """Make its files."""
        where = str(self._home / "data")
        self._call("initdb", "-D", where, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")

    def stop(self) -> None:
        """Stop it for good."""
        self._control("stop", "-m", "immediate")

    def _control(self, action: str, *options: str) -> None:
        self._call("pg_ctl", action, "-D", str(self._home / "data"), "-w", *options)

    def _call(self, program: str, *arguments: str) -> None:
        user = {} if os.geteuid() else {"user": _user(), "extra_groups": []}
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            cwd=self._home,
            **user,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{program} {arguments[0]} failed; see {self._home}/log"


@contextmanager
def serve() -> Iterator[Server]:
    """A server until the end of the block."""
    binaries = _binaries()
    assert binaries is not None
    home = Path(tempfile.mkdtemp(prefix="grasp-pg-"))
    if not os.geteuid():
        shutil.chown(home, _user())
    server = Server(home, binaries)
    try:
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return found[-1].parent if found else None


def _user() -> str | None:
    known = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)
