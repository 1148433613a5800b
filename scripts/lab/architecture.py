# SPDX-License-Identifier: Apache-2.0
"""The architectures that the lab boots, as data: names, packages, the emulated machine."""

import platform
from pathlib import Path
from typing import NamedTuple

BOOKWORM = "bookworm"


class Packaged(NamedTuple):
    """One of Debian's kernels.

    image: the package of its image: a meta package, or a shell pattern, of which the newest package counts.
    suite: of the archive that has it.
    """

    image: str
    suite: str = BOOKWORM

    @property
    def is_meta(self) -> bool:
        """Whether the image's package is one that the named package depends on."""
        return "*" not in self.image


class Built(NamedTuple):
    """A kernel that the lab builds itself.

    source: Debian's package of its source. config: what is set in its configuration, over allnoconfig. suite:
    of the archive that has the package.
    """

    source: str
    config: Path
    suite: str = BOOKWORM


class Architecture(NamedTuple):
    """One architecture.

    name: Debian's. machine: as `uname -m`. triplet: of its compiler and of its library folders. kernels:
    those that the lab boots, by their names. page_sizes: of the kernels, in bytes. emulated: QEMU's machine
    and CPU. report: its file below reports/. programs: the packages of the real programs, where they cannot
    be this machine's own.
    """

    name: str
    machine: str
    triplet: str
    kernels: dict[str, Packaged | Built]
    qemu: str
    qemu_package: str
    emulated: tuple[str, ...]
    console: str
    report: str
    page_sizes: tuple[int, ...] = (4096,)
    programs: tuple[str, ...] = ()

    @property
    def packaged(self) -> list[str]:
        """The kernels that need not be built."""
        return [name for name, kernel in self.kernels.items() if isinstance(kernel, Packaged)]


_PROGRAMS = (
    *("libc6", "libgcc-s1", "bash", "libtinfo6", "perl-base", "libcrypt1", "python3-minimal"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1", "zlib1g"),
)
_AMD64 = Architecture(
    name="amd64",
    machine="x86_64",
    triplet="x86_64-linux-gnu",
    kernels={
        "v6.1": Packaged("linux-image-cloud-amd64"),
        "v6.12": Packaged("linux-image-6.12-cloud-amd64"),
        "v6.18": Packaged("linux-image-6.18.*-cloud-amd64", "trixie-backports"),
        "v7.3": Packaged("linux-image-7.3.*-cloud-amd64", "trixie-backports"),
        "v7.3-nomapcount": Built(
            "linux-source-7.3", Path(__file__).with_name("nomapcount.config"), "trixie-backports"
        ),
    },
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    # la57=off: struct pages are where the collector looks
    emulated=("-cpu", "max,la57=off"),
    console="ttyS0",
    report="kernel_lab.csv",
    programs=_PROGRAMS,
)
_ARM64 = Architecture(
    name="arm64",
    machine="aarch64",
    triplet="aarch64-linux-gnu",
    kernels={
        "v6.1": Packaged("linux-image-cloud-arm64"),
        "v6.12": Packaged("linux-image-6.12-cloud-arm64"),
        "v6.12-16k": Packaged("linux-image-6.12-arm64-16k"),
    },
    qemu="qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    # The processor of the machine that the series was measured on (Ampere Altra): it sets dirty bits itself
    # (FEAT_HAFDBS), and without FEAT_LPA2 its page tables have four levels.
    emulated=("-machine", "virt", "-cpu", "neoverse-n1"),
    console="ttyAMA0",
    report="kernel_lab_arm64.csv",
    page_sizes=(4096, 16384),
    programs=_PROGRAMS,
)
ARCHITECTURES = {each.name: each for each in (_AMD64, _ARM64)}
OWN = next((each for each in ARCHITECTURES.values() if each.machine == platform.machine()), _AMD64)
"""This machine's, where the lab knows it."""


def compiler(architecture: Architecture) -> str:
    """The C compiler that makes programs for it."""
    return "gcc" if architecture is OWN else f"{architecture.triplet}-gcc"
