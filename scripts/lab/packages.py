"""Debian packages for the lab, fetched with a private apt configuration and unpacked into a cache.

Of the machine's own apt nothing but proxies and keys is used, and nothing is changed.
"""

import subprocess
from pathlib import Path

from lab.architecture import Architecture
from lab.errors import UnavailableError

CACHE = Path.home() / ".cache" / "replay-kernel-lab"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = (
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
)


class Apt:
    """apt for one architecture, with its own sources, lists and cache below one folder of the cache."""

    def __init__(self, architecture: Architecture, cache: Path = CACHE) -> None:
        name = architecture.name
        self.home = home = cache / ("apt" if name == "amd64" else f"apt-{name}")
        for folder in ("lists/partial", "archives/partial", "trees"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        sources.write_text(
            "".join(f"deb [arch={name} signed-by={KEYRING}] {url} {suite} main\n" for url, suite in SUITES)
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
        """Names of the packages that a meta package depends on, of its candidate version."""
        out = self._run("apt-cache", "depends", "--no-recommends", "--no-suggests", package)
        return [line.split()[-1] for line in out.splitlines() if line.strip().startswith("Depends:")]

    def unpacked(self, package: str) -> Path:
        """The folder that holds the unpacked package, downloaded at first use."""
        tree = self.home / "trees" / package
        if not tree.exists():
            self._run("apt-get", "download", package, cwd=self.home / "archives")
            deb = max(
                (self.home / "archives").glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime
            )
            part = tree.with_suffix(".part")
            self._run_plain("dpkg", "-x", str(deb), str(part))
            part.rename(tree)
            deb.unlink()
        return tree

    @staticmethod
    def _run_plain(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"{' '.join(command)} failed: {done.stderr.strip()}")
