"""A real PostgreSQL server for tests; the fixture `server` in conftest.py starts one for the session."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

PASSWORD = "open sesame/%7@ü"  # in a URL much of it is percent-encoded


class Server:
    """A server with a password; PostgreSQL refuses to run as root, so root hands it to another user.

    Attributes:
        url: of its one database.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, str(folder / "data")
        self._programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        if self._as_user:
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._call("initdb", "-D", self._data, "-U", "ann", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
        self.url = f"postgresql+psycopg://ann:{quote(PASSWORD, safe='')}@127.0.0.1:{self._port}/postgres"

    def _call(self, program: str, *words: str) -> None:
        command = [*self._as_user, self._programs / program, *words]
        subprocess.run(command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._call("pg_ctl", "-D", self._data, "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self, how: str = "immediate") -> None:
        self._call("pg_ctl", "-D", self._data, "-m", how, "stop")


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs; nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="kdsearch-postgres-"))
    try:
        server = Server(folder)
        server.start()
        yield server
        gc.collect()
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
