"""A PostgreSQL of a test's own: Debian's programs, run by their own user, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from glowplug.control import schema

_STARTS_WITHIN_S = 180


class PostgresServer:
    """Made empty and started; :meth:`close` when done."""

    def __init__(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not programs or os.geteuid() != 0:
            missing = "no PostgreSQL server to start, or no root to start it as its user"
            assert "CI" not in os.environ, missing
            pytest.skip(missing)
        self._programs = programs[-1].parent
        self.home = Path(tempfile.mkdtemp(prefix="gp-pg-"))
        shutil.chown(self.home, "postgres")
        self._data = str(self.home / "data")
        self._run("initdb", "-D", self._data, "-A", "trust", "-N", "--locale=C", "-E", "UTF8")
        self.start()

    @property
    def url(self) -> str:
        """As users name it."""
        return f"postgresql://postgres@/postgres?host={self.home}"

    @property
    def engine_url(self) -> str:
        """As SQLAlchemy names it."""
        return self.url.replace("postgresql://", "postgresql+psycopg://")

    def start(self) -> None:
        options = f"-k {self.home} -c listen_addresses= -c fsync=off"
        self._control("start", "-o", options, "-l", str(self.home / "log"))

    def stop(self) -> None:
        """As a restart of the service: sessions are ended, what was committed stays."""
        self._control("stop", "-m", "fast")

    def pause(self) -> None:
        """It stands still, with all its sessions."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def empty(self) -> None:
        """As it was made."""
        engine = create_engine(self.engine_url)
        schema.metadata.drop_all(engine)
        engine.dispose()

    def execute(self, statement: str) -> None:
        """By hand."""
        engine = create_engine(self.engine_url)
        with engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def close(self) -> None:
        self._control("stop", "-m", "immediate", check=False)
        shutil.rmtree(self.home)

    def _signal(self, number: signal.Signals) -> None:
        main = int((self.home / "data" / "postmaster.pid").read_text().split()[0])
        sessions = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for pid in (main, *map(int, sessions)):
            os.kill(pid, number)

    def _control(self, action: str, *arguments: str, check: bool = True) -> None:
        waits = ("-w", "-t", str(_STARTS_WITHIN_S), "-s")
        self._run("pg_ctl", "-D", self._data, *waits, *arguments, action, check=check)

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        command = ["runuser", "-u", "postgres", "--", str(self._programs / program), *arguments]
        subprocess.run(
            command, check=check, cwd=self.home, stdout=subprocess.DEVNULL, timeout=_STARTS_WITHIN_S + 20
        )
