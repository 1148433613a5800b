"""The architectures that the lab boots, as data: names, packages, the emulated machine."""

import platform
from typing import NamedTuple


class Architecture(NamedTuple):
    """One architecture.

    name: Debian's. machine: as `uname -m`. triplet: of its compiler and of its library folders. kernels:
    name -> meta package. page_sizes: of the kernels, in bytes. emulated: QEMU's machine and CPU. report: its
    file below reports/. programs: the packages of the real programs, where they cannot be this machine's own.
    """

    name: str
    machine: str
    triplet: str
    kernels: dict[str, str]
    qemu: str
    qemu_package: str
    emulated: tuple[str, ...]
    console: str
    report: str
    page_sizes: tuple[int, ...] = (4096,)
    programs: tuple[str, ...] = ()


_PROGRAMS = (
    *("libc6", "libgcc-s1", "bash", "libtinfo6", "perl-base", "libcrypt1", "python3-minimal"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1", "zlib1g"),
)
_AMD64 = Architecture(
    name="amd64",
    machine="x86_64",
    triplet="x86_64-linux-gnu",
    kernels={"v6.1": "linux-image-cloud-amd64", "v6.12": "linux-image-6.12-cloud-amd64"},
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
        "v6.1": "linux-image-cloud-arm64",
        "v6.12": "linux-image-6.12-cloud-arm64",
        "v6.12-16k": "linux-image-6.12-arm64-16k",
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
