# SPDX-License-Identifier: Apache-2.0
"""A kernel built from Debian's source package, where no packaged one has the configuration.

The recipe, by hand: unpack linux-source-VERSION and the archive of /usr/src in it, then
`make allnoconfig KCONFIG_ALLCONFIG=scripts/lab/NAME.config` and `make bzImage`. No source is changed.
"""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from lab.architecture import Architecture, Built
from lab.errors import LabError, UnavailableError
from lab.packages import Apt

# Command, or header below /usr/include -> Debian's package: what a kernel's build needs beside gcc and make.
NEEDS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "gelf.h": "libelf-dev",
}
IMAGE = "arch/x86/boot/bzImage"


def built_kernel(architecture: Architecture, kernel: Built) -> Path:
    """The image of a kernel, built at first use: minutes on an idle machine, at the lowest priority.

    It lies in a `boot` folder of the cache with its configuration beside it, and is built again when the
    lab's configuration changes. Raises UnavailableError if the source or a tool cannot be had, LabError if
    the build fails.
    """
    apt = Apt(architecture, kernel.suite)
    folder = apt.home / "built" / kernel.config.stem
    image = folder / "boot" / "vmlinuz"
    used = folder / "boot" / "lab.config"
    wanted = kernel.config.read_text()
    if image.exists() and used.exists() and used.read_text() == wanted:
        return image
    _check_tools()
    apt.update()
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "source"
    work.mkdir(parents=True)
    [archive] = (apt.unpacked(kernel.source) / "usr" / "src").glob("linux-source-*.tar.xz")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="tar")
    [tree] = work.iterdir()
    _make(tree, "allnoconfig", f"KCONFIG_ALLCONFIG={kernel.config}")
    _check_config(tree / ".config", wanted)
    _make(tree, f"-j{os.cpu_count()}", "bzImage")
    image.parent.mkdir()
    # as Debian's packages name it: so `replay` finds it in the guest's /boot
    release = (tree / "include" / "config" / "kernel.release").read_text().strip()
    shutil.copy(tree / ".config", image.parent / f"config-{release}")
    shutil.copy(tree / IMAGE, image)
    used.write_text(wanted)
    shutil.rmtree(work)
    return image


def _check_tools() -> None:
    missing = [
        package
        for name, package in NEEDS.items()
        if not (Path("/usr/include", name).exists() if name.endswith(".h") else shutil.which(name))
    ]
    if missing:
        raise UnavailableError(f"a kernel cannot be built here: apt-get install {' '.join(missing)}")


def _check_config(config: Path, wanted: str) -> None:
    """Raise LabError if the kernel's configuration has not got what the lab's asks for."""
    have = set(config.read_text().splitlines())
    lost = [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in have]
    if lost:
        raise LabError(f"this kernel's source has no {', '.join(lost)}")


def _make(tree: Path, *arguments: str) -> None:
    log = tree.parent / "log"
    with log.open("w") as out:
        done = subprocess.run(
            ["nice", "-n", "19", "make", "-C", str(tree), *arguments], stdout=out, stderr=out
        )
    if done.returncode:
        raise LabError(f"make {arguments[-1]} failed: see {log}")
