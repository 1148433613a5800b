"""Debian packages for the lab, fetched with a private apt configuration and unpacked into a cache.

Of the machine's own apt nothing but proxies and keys is used, and nothing is changed.
"""

import subprocess
from pathlib import Path

from lab.errors import UnavailableError

CACHE = Path.home() / ".cache" / "replay-kernel-lab"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = (
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
)
META_PACKAGES = {"v6.1": "linux-image-cloud-amd64", "v6.12": "linux-image-6.12-cloud-amd64"}


class Apt:
    """apt with its own sources, lists and cache below one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("lists/partial", "archives/partial", "trees"):
            (home / name).mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        sources.write_text(
            "".join(f"deb [arch=amd64 signed-by={KEYRING}] {url} {suite} main\n" for url, suite in SUITES)
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
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        self._options = [f"-o{name}={value}" for name, value in settings.items()]

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
