# SPDX-License-Identifier: Apache-2.0
"""Running programs, each brought into a known state: what is captured live.

A function here starts its program and yields it, ready to be captured, as `Running`; behind the yield
everything it started ends.
"""

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus import thp
from corpus.packages import Packages, UnavailableError
from corpus.processes import PAGE_SIZE, child_named, done, line, resident_pages, running, until

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = "/usr/bin/python3"
MIB = (1 << 20) // PAGE_SIZE


@dataclass(frozen=True)
class Running:
    """A program in the state to capture. program, started, state: for the provenance table."""

    pid: int
    program: str
    started: str
    state: str


@contextlib.contextmanager
def _arrays(packages: Packages, state: str, huge: bool, *arguments: str) -> Iterator[Running]:
    packages.need("python3", "python3-numpy")
    switch = str(int(huge))
    environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": switch}
    command: list[str | Path] = [PYTHON, "-I", PROGRAMS / "arrays.py", *arguments]
    with running(*command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        line(process, "ready")
        yield Running(
            process.pid,
            f"CPython {packages.version('python3')}, NumPy {packages.version('python3-numpy')}",
            " ".join([f"NUMPY_MADVISE_HUGEPAGE={switch} python3 -I programs/arrays.py", *arguments]),
            state,
        )


@contextlib.contextmanager
def numpy(packages: Packages, folder: Path) -> Iterator[Running]:
    """Arrays in ordinary pages."""
    with thp.unchanged(), _arrays(packages, "arrays allocated, a part freed again", False) as ready:
        yield ready


@contextlib.contextmanager
def numpy_thp(packages: Packages, folder: Path) -> Iterator[Running]:
    """Arrays in huge pages, which NumPy asks for by madvise(), mapped by PMDs."""
    with (
        thp.unchanged(),
        _arrays(packages, "as numpy; arrays of 4 MiB and more in THPs by madvise", True) as ready,
    ):
        yield ready


@contextlib.contextmanager
def numpy_thp_split(packages: Packages, folder: Path) -> Iterator[Running]:
    """The same, with huge pages in part given back or protected: mapped by PTEs."""
    state = (
        "as numpy-thp; of every three huge pages of an array the first lost 64 KiB, "
        "the second has a read-only page, the third is whole"
    )
    with thp.unchanged(), _arrays(packages, state, True, "split") as ready:
        yield ready


@contextlib.contextmanager
def numpy_32k(packages: Packages, folder: Path) -> Iterator[Running]:
    """Arrays, heap and stack in folios of order 3."""
    with thp.folios_of(32), _arrays(packages, "as numpy; anonymous folios of 32 KiB", False) as ready:
        yield ready


@contextlib.contextmanager
def cc1(packages: Packages, folder: Path) -> Iterator[Running]:
    """The C compiler in the middle of the SQLite amalgamation."""
    packages.need("gcc", "make", "tcl", "libc6-dev")
    tree = packages.source("sqlite3")
    amalgamation = tree / "sqlite3.c"
    if not amalgamation.exists():
        done("./configure", cwd=tree)
        done("make", "sqlite3.c", cwd=tree)
    command: list[str | Path] = ["gcc", "-O2", "-c", amalgamation, "-o", folder / "sqlite3.o"]
    with thp.unchanged(), running(*command, cwd=folder) as process:
        compiler = until(lambda: child_named(process.pid, "cc1"), "cc1 started")
        lines = amalgamation.read_bytes().count(b"\n")
        until(lambda: resident_pages(compiler) > 192 * MIB, "cc1 at 192 MiB")
        yield Running(
            compiler,
            f"cc1, {done('gcc', '--version').splitlines()[0]}",
            "gcc -O2 -c sqlite3.c -o sqlite3.o",
            f"in the middle of the amalgamation of sqlite3 {packages.source_version(tree)}, {lines:,} lines; "
            "captured when it had reached 192 MiB",
        )


@contextlib.contextmanager
def postgresql(packages: Packages, folder: Path) -> Iterator[Running]:
    """A backend that has read and written most of a warm buffer pool."""
    packages.need("postgresql", "postgresql-contrib")
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None:
        raise UnavailableError("no PostgreSQL below /usr/lib/postgresql")
    with thp.unchanged(), postgresql_server(binaries, folder) as (connect, user):
        done(binaries / "pgbench", *connect, "-i", "-q", "-s", "10", "pgbench", user=user)
        with running(
            "psql", *connect, "-qAtX", "pgbench", user=user, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            queries = [
                "create extension pg_prewarm;",
                "select pg_prewarm('pgbench_accounts') > 0 and pg_prewarm('pgbench_accounts_pkey') > 0;",
                "select 'sum ' || sum(abalance) from pgbench_accounts;",
                "update pgbench_accounts set abalance = abalance + 1 where aid % 100 = 0;",
                "select 'pid ' || pg_backend_pid();",
            ]
            assert client.stdin is not None, "the client was started with a pipe"
            client.stdin.write("\n".join(queries) + "\n")
            client.stdin.flush()
            line(client, "t")
            line(client, "sum")
            pid = int(line(client, "pid").split()[1])
            done(binaries / "pgbench", *connect, "-n", "-c", "2", "-t", "2000", "pgbench", user=user)
            yield Running(
                pid,
                f"PostgreSQL {packages.version(f'postgresql-{binaries.parent.name}')}",
                "postgres -c shared_buffers=192MB; pgbench -i -s 10; psql",
                "idle backend that prewarmed, read and updated pgbench_accounts; then pgbench -c 2 -t 2000",
            )


@contextlib.contextmanager
def postgresql_server(binaries: Path, folder: Path) -> Iterator[tuple[list[str], str | None]]:
    """A PostgreSQL server on a unix socket in `folder`; yields connection options and the user to run as."""
    user = None
    data = folder / "data"
    data.mkdir()
    if os.geteuid() == 0:
        user = "postgres"
        for path in (folder, data):
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    done(binaries / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", user=user, cwd=folder)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": folder,
        "shared_buffers": "192MB",
        "autovacuum": "off",
        "fsync": "off",
    }
    words = [f"-c{name}={value}" for name, value in settings.items()]
    connect = ["-h", str(folder), "-U", "postgres"]
    # SIGINT is PostgreSQL's fast shutdown: the backends end with it
    with running(binaries / "postgres", "-D", data, *words, ending=signal.SIGINT, user=user, cwd=folder):
        ready: list[str | Path] = [binaries / "pg_isready", "-q", *connect]
        until(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL ready")
        done("createdb", *connect, "pgbench", user=user, cwd=folder)
        yield connect, user


@contextlib.contextmanager
def redis(packages: Packages, folder: Path) -> Iterator[Running]:
    """Redis with 100,000 keys."""
    packages.need("redis-server", "redis-tools")
    socket = folder / "socket"
    command: list[str | Path] = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--save",
        "",
        "--dir",
        folder,
    ]
    with thp.unchanged(), running(*command) as process:
        until(socket.exists, "Redis ready")
        done("redis-cli", "-s", socket, "--pipe", input="".join(_redis_commands(100_000)))
        keys = done("redis-cli", "-s", socket, "dbsize").strip()
        yield Running(
            process.pid,
            f"Redis {packages.version('redis-server')}",
            "redis-server --port 0 --unixsocket S --save ''; redis-cli --pipe",
            f"{int(keys):,} keys: 70 % strings of 16 to 1,015 bytes, 20 % hashes, 10 % lists; idle",
        )


def _redis_commands(keys: int) -> Iterator[str]:
    """Commands that make so many keys, deterministic."""
    for number in range(keys):
        if number % 10 < 7:
            yield f"SET string:{number} {'v' * (16 + number * 7919 % 1000)}\r\n"
        elif number % 10 < 9:
            fields = " ".join(f"field{field} {number * field}" for field in range(1, 9))
            yield f"HSET hash:{number} {fields}\r\n"
        else:
            yield f"RPUSH list:{number} {' '.join(str(number * item) for item in range(1, 30))}\r\n"


@contextlib.contextmanager
def jvm(packages: Packages, folder: Path) -> Iterator[Running]:
    """javac at work on Apache Commons Lang."""
    packages.need("openjdk-17-jdk-headless")
    tree = packages.source("libcommons-lang3-java")
    sources = sorted((tree / "src" / "main" / "java").rglob("*.java"))
    listing = folder / "sources"
    listing.write_text("".join(f"{path}\n" for path in sources))
    command: list[str | Path] = [
        "javac",
        "-J-Xms256m",
        "-encoding",
        "UTF-8",
        "-nowarn",
        "-d",
        folder / "classes",
        f"@{listing}",
    ]
    with thp.unchanged(), running(*command) as process:
        until(lambda: resident_pages(process.pid) > 200 * MIB, "javac at 200 MiB")
        yield Running(
            process.pid,
            f"javac of openjdk-17-jdk-headless {packages.version('openjdk-17-jdk-headless')}",
            "javac -J-Xms256m -encoding UTF-8 -nowarn -d classes @sources",
            f"in the middle of {len(sources)} files of libcommons-lang3-java "
            f"{packages.source_version(tree)}; captured when it had reached 200 MiB",
        )


@contextlib.contextmanager
def nodejs(packages: Packages, folder: Path) -> Iterator[Running]:
    """A Node.js HTTP server under load."""
    packages.need("nodejs")
    socket = folder / "socket"
    pipe = {"stdout": subprocess.PIPE}
    with thp.unchanged(), running("node", PROGRAMS / "server.js", socket, **pipe) as server:
        line(server, "ready")
        with running("node", PROGRAMS / "load.js", socket, **pipe) as load:
            for _ in range(20):
                requests = line(load, "")
            yield Running(
                server.pid,
                f"Node.js {packages.version('nodejs')}",
                "node programs/server.js S, node programs/load.js S",
                f"under load on a unix socket, after {int(requests):,} requests",
            )


CASES = {
    "numpy": numpy,
    "numpy-thp": numpy_thp,
    "numpy-thp-split": numpy_thp_split,
    "numpy-32k": numpy_32k,
    "cc1": cc1,
    "postgresql": postgresql,
    "redis": redis,
    "jvm": jvm,
    "nodejs": nodejs,
}
"""Name of the capture -> what starts its program."""
