# SPDX-License-Identifier: Apache-2.0
"""`replay validate` itself in the guest: this machine's Python, replay and what it needs, on a disk."""

import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import boot, initramfs, python_disk
from lab.case import contents
from lab.errors import LabError
from lab.run import Kernel, prefixed

MEMORY_MIB = 2048
# With two the v6.12 guest died when tracing was switched on: in QEMU 7.2 one virtual CPU ran into an int3 of
# the kernel's code patching that the other had taken away again (ttwu_do_activate(), "Oops: int3").
CPUS = 1
WORKLOADS, TESTS = "workloads", "tests"
# Run by a shell; what they print goes nowhere, as the document goes to standard output.
COMMANDS = {
    "pipeline": "for i in 1 2 3; do ls -lR /env | sort | sed -n s/h/H/p | tail -n 3; done; (true; true)",
    "python": "{python} -c 'import json, decimal, asyncio, numpy, polars'",
    "build": "cd {sources} && for i in 1 2 3; do gcc -O1 -o /tmp/init$i {init} & done; wait; ls /tmp/init?",
}
# The build again, with the LRU batches as they are.
UNDRAINED = "build-as-it-is"
NEEDS = {"build": "gcc"}
NAMES = (WORKLOADS, *COMMANDS, UNDRAINED, TESTS)


@dataclass
class Validated:
    """What `replay validate` said on one kernel. documents: name of the run -> its JSON.

    seconds: how long each run took. tests: last line of the tests that ran there. failed: run -> why it did
    not come to its end.
    """

    kernel: str
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, int] = field(default_factory=dict)
    tests: str = ""
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def release(self) -> str:
        """The kernel's own name."""
        return next((document["kernel"] for document in self.documents.values()), "")

    @property
    def agrees(self) -> bool:
        """Whether nothing differs without a known cause."""
        return all(document["agrees"] for document in self.documents.values())


def runs(installed: Iterable[str]) -> dict[str, list[str]]:
    """What is run in the guest: name -> arguments. installed: what the disk has beside replay."""
    python = str(python_disk.PYTHON)
    validate = [python, "-m", "replay.cli", "validate", "--json"]
    found = {WORKLOADS: validate}
    for name, command in COMMANDS.items():
        if NEEDS.get(name, name) in (name, *installed):
            filled = command.format(
                python=python, sources=python_disk.SOURCES, init=" ".join(initramfs.INIT_SOURCES)
            )
            found[name] = [*validate, "--", "sh", "-c", f"exec >/dev/null; {filled}"]
    if "build" in found:
        found[UNDRAINED] = [*validate, "--no-drain", *found["build"][len(validate) :]]
    if "pytest" in installed:
        # on Linux without kprobes these are skipped
        tests = str(python_disk.TESTS / "validate" / "test_probes.py")
        found[TESTS] = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    return found


def run_validate(
    kernel: Kernel, only: Iterable[str], work: Path, progress: Callable[[str], None]
) -> Validated:
    """Boot the kernel and run `replay validate` in it in several ways.

    :param only: names of runs, all if there are none
    :param work: an empty folder for this kernel, removed by the caller
    """
    initramfs.compile_guest(kernel.architecture, work, kernel.page_size)
    disks = [work / name for name in ("out", "root.ext4", "swap")]
    boot.sparse(disks[0], boot.OUTPUT_GIB << 30)
    installed = python_disk.make(work / "root", disks[1], kernel.image)
    boot.swap_image(disks[2], kernel.page_size)
    # names give the order
    programs = {
        f"{number:02}-{name}": "".join(f"{argument}\n" for argument in arguments)
        for number, (name, arguments) in enumerate(runs(installed).items())
        if not only or name in only
    }
    if not programs:
        raise LabError(f"no run is called {' or '.join(only)}: choose from {', '.join(runs(installed))}")
    loaded = initramfs.modules(kernel.modules) if kernel.modules else []
    initrd = work / "initrd"
    initrd.write_bytes(initramfs.initramfs(work, loaded, "", {}, programs))
    command = boot.command(kernel.architecture, kernel.image, initrd, disks, memory_mib=MEMORY_MIB, cpus=CPUS)
    boot.run(kernel.architecture, command, progress)
    return read_results(kernel.name, disks[0])


def read_results(kernel: str, archive: Path) -> Validated:
    """What the guest wrote. Raises LabError if it is cut."""
    with tarfile.open(archive) as tar:
        files = {
            member.name: contents(tar, member).decode(errors="replace")
            for member in tar
            if member.name.startswith(("programs/", "boot/done"))
        }
    if "boot/done" not in files:
        raise LabError("the guest's output is cut: the output disk is too small or the guest died")
    result = Validated(kernel)
    for folder in dict.fromkeys(path.rpartition("/")[0] for path in files if path.startswith("programs/")):
        name = folder.partition("-")[2]
        result.seconds[name] = int(files[f"{folder}/seconds"])
        why = _take(result, name, int(files[f"{folder}/status"]), files[f"{folder}/stdout"])
        if why:
            said = (files[f"{folder}/stderr"] or files[f"{folder}/stdout"]).strip().splitlines() or [
                "nothing"
            ]
            result.failed[name] = f"{why}; it said: {' | '.join(said[-3:])}"
    return result


def _take(result: Validated, name: str, status: int, out: str) -> str:
    """Put what one run printed into the result -> what is wrong with it, if anything."""
    if name == TESTS:
        result.tests = out.strip().rpartition("\n")[2]
        return f"exit status {status}" if status else ""
    try:
        document = json.loads(out)
    except ValueError:
        return f"exit status {status} and no document"
    result.documents[name] = document
    if status != (0 if document["agrees"] else 3):
        return f"exit status {status} does not go with its document"
    return f"its command failed with exit status {document['status']}" if document["status"] else ""


def run_kernels(
    kernels: Iterable[Kernel], only: Iterable[str], say: Callable[[str], None]
) -> Iterator[Validated]:
    """`run_validate` on each kernel, in a work folder that is removed."""
    for kernel in kernels:
        with tempfile.TemporaryDirectory(prefix="replay-kernel-lab-") as work:
            yield run_validate(kernel, only, Path(work), prefixed(say, kernel.name))
