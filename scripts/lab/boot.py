# SPDX-License-Identifier: Apache-2.0
"""One boot of one kernel in QEMU's emulated CPU (TCG, no KVM): the same on every machine."""

import os
import re
import selectors
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.architecture import Architecture
from lab.errors import LabError, UnavailableError

MEMORY_PAGES = 1 << 18
OUTPUT_GIB = 8  # sparse: only what the guest writes takes room
SWAP_PAGES = 1 << 15
STALL_SECONDS = 120  # the slowest case takes a few seconds
# nokaslr: struct pages are where the collector and the parser look.
COMMAND_LINE = "console={console} quiet panic=-1 nokaslr no_hash_pointers mitigations=off audit=0 nowatchdog"
_STEP = re.compile(r"lab: (.*)")


def sparse(path: Path, size: int) -> None:
    """A file of `size` bytes without blocks."""
    with path.open("wb") as file:
        file.truncate(size)


def swap_image(path: Path, page_size: int) -> None:
    """A swap area, written by hand: a version-1 header in its first page."""
    sparse(path, SWAP_PAGES * page_size)
    with path.open("r+b") as file:
        file.seek(1024)
        file.write((1).to_bytes(4, "little") + (SWAP_PAGES - 1).to_bytes(4, "little"))
        file.seek(page_size - 10)
        file.write(b"SWAPSPACE2")


def command(
    architecture: Architecture,
    kernel: Path,
    initrd: Path,
    disks: list[Path],
    *,
    memory_mib: int,
    cpus: int = 1,
) -> list[str]:
    """QEMU's arguments. With one virtual CPU no other CPU's LRU-add batch holds references."""
    drives = [f"file={disk},if=virtio,format=raw,cache=unsafe" for disk in disks]
    return [
        architecture.qemu, "-accel", "tcg", *architecture.emulated,
        "-smp", str(cpus), "-m", str(memory_mib),
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", COMMAND_LINE.format(console=architecture.console),
        *(word for drive in drives for word in ("-drive", drive)),
    ]  # fmt: skip


def run(architecture: Architecture, arguments: list[str], progress: Callable[[str], None]) -> None:
    """Run QEMU until the guest is done. Raises LabError with the guest's last words if it does not get there.

    :param progress: called with each line that the guest's init prints
    """
    if not shutil.which(architecture.qemu):
        raise UnavailableError(f"{architecture.qemu} is missing: apt-get install {architecture.qemu_package}")
    last: list[str] = []
    done = False
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as qemu:
        try:
            for line in _console(qemu):
                last = [*last[-7:], line]
                if step := _STEP.match(line):
                    progress(step[1])
                    done = step[1].startswith("done")
                if done:
                    # its output is on the disk; without ACPI it cannot power off
                    break
        finally:
            qemu.kill()
    if not done:
        raise LabError(f"the guest did not finish; its last words: {' | '.join(last) or 'none'}")


def _console(qemu: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines of the guest's console until it closes or stays silent for STALL_SECONDS."""
    assert qemu.stdout
    pipe = qemu.stdout.fileno()
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(STALL_SECONDS):
            part = os.read(pipe, 65536)
            if not part:
                return
            *whole, pending = (pending + part).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace").strip()
