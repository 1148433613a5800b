# SPDX-License-Identifier: Apache-2.0
"""What the corpus needs of Debian: packages installed, source packages unpacked."""

import shutil
import subprocess
from pathlib import Path

LOCK_SECONDS = 300
"""How long apt and dpkg wait for another that holds their lock."""


class UnavailableError(Exception):
    """Something that a capture needs is not to be had here; the message says what."""


class Packages:
    """Packages of the running system; `home` keeps lists and trees of source packages."""

    def __init__(self, home: Path, install: bool) -> None:
        self.home = home
        self.install = install

    def need(self, *names: str) -> None:
        """Have these packages installed; services they bring are not started."""
        missing = [name for name in names if not self.version(name)]
        if not missing:
            return
        if not self.install:
            raise UnavailableError(f"not installed: {', '.join(missing)} (--no-install)")
        with _no_services():
            _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *_waiting(), *missing)

    def version(self, name: str) -> str:
        """The installed version of a package, empty if it is not installed."""
        if not shutil.which("dpkg-query"):
            raise UnavailableError("dpkg-query is missing: the corpus needs a Debian-like system")
        query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", name]
        status, _, version = subprocess.run(query, capture_output=True, text=True).stdout.partition(" ")
        return version if status == "installed" else ""

    def source(self, name: str) -> Path:
        """The unpacked tree of a source package, patches applied, fetched at first use."""
        folder = self.home / "sources" / name
        if not folder.exists():
            self.need("dpkg-dev")
            options = self._source_lists()
            folder.mkdir(parents=True)
            try:
                _run("apt-get", "source", "-qq", *options, name, cwd=folder)
            except UnavailableError:
                shutil.rmtree(folder)
                raise
        return next(path for path in folder.iterdir() if path.is_dir())

    @staticmethod
    def source_version(tree: Path) -> str:
        """The version of an unpacked source package, by its changelog."""
        return _run("dpkg-parsechangelog", "-S", "Version", cwd=tree).strip()

    def _source_lists(self) -> list[str]:
        """Options for apt with source lists of its own, which name the archives that the system uses."""
        home = self.home / "apt"
        (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        options = [f"-oDir::Etc::sourcelist={sources}", "-oDir::Etc::sourceparts=-"]
        options += [f"-oDir::State::lists={home / 'lists'}", *_waiting()]
        if not sources.exists():
            form = "deb-src $(REPO_URI) $(CODENAME) $(COMPONENT)"
            targets = _run(
                "apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian"
            )
            if not targets.strip():
                raise UnavailableError("apt knows no Debian archive to fetch source packages from")
            sources.write_text("".join(sorted(set(targets.splitlines(keepends=True)))))
            _run("apt-get", "update", "-qq", *options)
        return options


def _waiting() -> list[str]:
    return [f"-oDPkg::Lock::Timeout={LOCK_SECONDS}"]


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1200)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(f"{' '.join(command[:2])} failed: {reason}")
    return done.stdout


class _no_services:  # noqa: N801 - used like a function
    """Context manager: packages installed meanwhile do not start their services (policy-rc.d)."""

    policy = Path("/usr/sbin/policy-rc.d")

    def __enter__(self) -> None:
        self.ours = not self.policy.exists()
        if self.ours:
            self.policy.write_text("#!/bin/sh\nexit 101\n")
            self.policy.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        if self.ours:
            self.policy.unlink(missing_ok=True)
