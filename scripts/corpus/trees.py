# SPDX-License-Identifier: Apache-2.0
"""Command trees, each of whose processes is captured at its exit.

A function here prepares its command and yields it as `Tree`; behind the yield everything is undone.
"""

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus import thp
from corpus.live import PROGRAMS, PYTHON
from corpus.packages import Packages, UnavailableError
from corpus.processes import done


@dataclass(frozen=True)
class Tree:
    """A command ready to be recorded. program, started, state: for the provenance table."""

    command: list[str]
    program: str
    started: str
    state: str


@contextlib.contextmanager
def build(packages: Packages, folder: Path) -> Iterator[Tree]:
    """A C project built with two jobs, ordinary pages."""
    with thp.unchanged():
        yield _build(packages, folder, "ordinary pages")


@contextlib.contextmanager
def build_32k(packages: Packages, folder: Path) -> Iterator[Tree]:
    """The same build with anonymous folios of order 3 wherever they fit."""
    tree = _build(packages, folder, "anonymous folios of 32 kB always on")
    with thp.folios_of(32):
        yield tree


def _build(packages: Packages, folder: Path, state: str) -> Tree:
    packages.need("gcc", "make", "libc6-dev")
    source = packages.source("redis")
    version = packages.source_version(source)
    tree = shutil.copytree(source, folder / "redis", symlinks=True)
    command = ["make", "-j2", "MALLOC=libc", "OPTIMIZATION=-O2", "redis-server"]
    return Tree(
        ["make", "-C", str(tree / "src"), *command[1:]],
        f"Redis {version} from its source package, {done('gcc', '--version').splitlines()[0]}",
        f"{' '.join(command)} (in src/)",
        state,
    )


@contextlib.contextmanager
def pytest(packages: Packages, folder: Path) -> Iterator[Tree]:
    """The tests of a Python package, two workers."""
    packages.need("python3", "python3-pytest", "python3-pytest-xdist", "python3-jinja2")
    source = packages.source("jinja2")
    version = packages.source_version(source)
    command = [PYTHON, "-m", "pytest", "-q", "-n2", "-p", "no:cacheprovider"]
    with thp.unchanged():
        yield Tree(
            [*command, str(source / "tests")],
            f"pytest {packages.version('python3-pytest')}, tests of Jinja2 {version}",
            f"{' '.join(command)} tests".replace(PYTHON, "python3"),
            "ordinary pages",
        )


@contextlib.contextmanager
def postgresql_run(packages: Packages, folder: Path) -> Iterator[Tree]:
    """A PostgreSQL server started, loaded and stopped."""
    packages.need("postgresql")
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None:
        raise UnavailableError("no PostgreSQL below /usr/lib/postgresql")
    script = shutil.copy(PROGRAMS / "postgresql.sh", folder)
    command = ["sh", str(script), str(binaries), str(folder)]
    if os.geteuid() == 0:
        folder.chmod(0o755)
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
    with thp.unchanged():
        yield Tree(
            command,
            f"PostgreSQL {packages.version(f'postgresql-{binaries.parent.name}')}",
            "sh programs/postgresql.sh",
            "initdb, start, pgbench -i -s 5, pgbench -c 4 -t 500, stop; ordinary pages",
        )


@contextlib.contextmanager
def pipeline(packages: Packages, folder: Path) -> Iterator[Tree]:
    """A shell pipeline: the most frequent words of the C headers."""
    words = "tr -cs A-Za-z_ '\\n' | sort | uniq -c | sort -rn | head -20"
    script = f"find /usr/include -name '*.h' -print0 | xargs -0 cat | {words}"
    with thp.unchanged():
        yield Tree(
            ["sh", "-c", f"{script} > {folder / 'words'}"],
            f"dash {packages.version('dash')}, coreutils {packages.version('coreutils')}",
            script,
            "ordinary pages",
        )


CASES = {
    "build": build,
    "build-32k": build_32k,
    "pytest": pytest,
    "postgresql-run": postgresql_run,
    "pipeline": pipeline,
}
"""Name of the recording -> what prepares its command."""
