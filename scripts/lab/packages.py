# SPDX-License-Identifier: Apache-2.0
"""Debian packages for the lab, fetched with a private apt configuration and unpacked into a cache.

Of the machine's own apt nothing but proxies and keys is used, and nothing is changed.
"""

import re
import subprocess
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from lab.architecture import BOOKWORM, Architecture, Packaged
from lab.errors import UnavailableError

CACHE = Path.home() / ".cache" / "replay-kernel-lab"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ARCHIVE = "http://deb.debian.org/debian"
SUITES = {
    BOOKWORM: ((_ARCHIVE, "bookworm"), ("http://deb.debian.org/debian-security", "bookworm-security")),
    "trixie-backports": ((_ARCHIVE, "trixie-backports"),),
}
"""Suite -> what apt reads for it: archive and name."""
# What a kernel's image package is made of: since 7.0 it only names the packages with vmlinuz, modules and
# configuration.
_PARTS = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")


class Apt:
    """apt for one architecture and suite; its sources, lists and cache lie in one folder of the cache."""

    def __init__(self, architecture: Architecture, suite: str = BOOKWORM, cache: Path = CACHE) -> None:
        name = architecture.name
        parts = ["apt", *([name] if name != "amd64" else []), *([suite] if suite != BOOKWORM else [])]
        self.home = home = cache / "-".join(parts)
        for folder in ("lists/partial", "archives/partial", "trees"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        sources.write_text(
            "".join(f"deb [arch={name} signed-by={KEYRING}] {url} {of} main\n" for url, of in SUITES[suite])
        )
        (home / "status").touch()
        settings = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": home / "lists",
            "Dir::State::status": home / "status",
            "Dir::Cache": home / "archives",
            "Dir::Cache::archives": home / "archives",
            "APT::Architecture": name,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        self._options = [f"-o{key}={value}" for key, value in settings.items()]

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        try:
            done = subprocess.run(
                [command[0], *self._options, *command[1:]],
                cwd=cwd,
                capture_output=True,
                text=True,
                timeout=600,
            )
        except FileNotFoundError:
            raise UnavailableError(f"{command[0]} is missing: the lab needs a Debian-like system") from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{' '.join(command)} did not end within ten minutes") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnavailableError(f"{' '.join(command)} failed: {reason}")
        return done.stdout

    def update(self) -> None:
        """Fetch the package lists, unless they are there already."""
        if not KEYRING.exists():
            raise UnavailableError(f"{KEYRING} is missing: install debian-archive-keyring")
        if not any((self.home / "lists").glob("*Packages*")):
            self._run("apt-get", "update", "-qq")

    def depends(self, package: str) -> list[str]:
        """Names of the packages that a package depends on, of its candidate version."""
        out = self._run("apt-cache", "depends", "--no-recommends", "--no-suggests", package)
        return [line.split()[-1] for line in out.splitlines() if line.strip().startswith("Depends:")]

    def newest(self, pattern: str) -> str:
        """The package of the highest version whose name matches a shell pattern; "" if there is none."""
        names = self._run("apt-cache", "pkgnames", pattern.partition("*")[0]).split()
        found = [name for name in names if fnmatch(name, pattern)]
        return max(found, key=_numbers, default="")

    def unpacked(self, package: str, *more: str) -> Path:
        """The folder that holds the unpacked package and `more` of its parts, downloaded at first use."""
        tree = self.home / "trees" / package
        if not tree.exists():
            part = self.home / "trees" / f"{package}.part"
            for name in (package, *more):
                self._unpack(name, part)
            part.rename(tree)
        return tree

    def _unpack(self, package: str, into: Path) -> None:
        archives = self.home / "archives"
        self._run("apt-get", "download", package, cwd=archives)
        deb = max(archives.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        self._run_plain("dpkg", "-x", str(deb), str(into))
        deb.unlink()

    @staticmethod
    def _run_plain(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _numbers(name: str) -> list[int]:
    """The numbers in a name, to tell 6.18.15 from 6.18.9."""
    return [int(word) for word in re.findall(r"\d+", name)]


def kernel_tree(architecture: Architecture, kernel: Packaged) -> Path:
    """The folder that holds one of Debian's kernels, whatever packages it is made of.

    Raises UnavailableError if the archive has no such kernel any more.
    """
    apt = Apt(architecture, kernel.suite)
    apt.update()
    package = apt.newest(kernel.image)
    needs = apt.depends(package) if package else []
    if kernel.is_meta:
        package = next(iter(_parts(needs)), "")
        needs = apt.depends(package) if package else []
    if not package:
        raise UnavailableError(f"no package {kernel.image} is in Debian's {kernel.suite} any more")
    return apt.unpacked(package, *_parts(needs))


def _parts(names: Iterable[str]) -> list[str]:
    """Those of some packages that a kernel is made of, an image first."""
    return sorted((name for name in names if name.startswith(_PARTS)), key=lambda name: "-image-" not in name)
