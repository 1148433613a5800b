# SPDX-License-Identifier: Apache-2.0
"""One kernel, its cases, one boot: from the package to the rows of the report."""

import gzip
import shutil
import struct
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab import boot, initramfs
from lab.architecture import OWN, Architecture, Built
from lab.build import built_kernel
from lab.case import Attempt, Boot, read_attempts, read_boot, write_case
from lab.compare import UNEXPLAINED, Row, compare
from lab.errors import LabError
from lab.packages import Apt, kernel_tree
from lab.probes import PROBES, Probe, lines
from replay.errors import ReplayError
from replay.teardown.algorithms import ALGORITHMS
from replay.validate import predict

Progress = Callable[[str], None]
_IMAGES = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
NO_PAGE_MAPCOUNT = "CONFIG_NO_PAGE_MAPCOUNT=y"
_IMAGE_HEADER = struct.Struct("<24xQ24x4s")
_IMAGE_MAGIC = b"ARM\x64"


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot.

    modules: the tree that holds its modules, if any. algorithm: what it does at exit; "" to go by its
    functions and its configuration.
    """

    name: str
    architecture: Architecture
    image: Path
    modules: Path | None
    algorithm: str = ""
    probes: tuple[Probe, ...] = PROBES

    @property
    def config(self) -> str:
        """Its configuration: beside the image, as in Debian's packages, or where it was built; else ""."""
        image = self.image.resolve()
        found = [*sorted(image.parent.glob("config*")), *(tree / ".config" for tree in image.parents[3:4])]
        return next((path.read_text() for path in found if path.is_file()), "")

    @property
    def averages(self) -> bool:
        """Whether it shows averages of mapcounts: by its configuration, or else by its algorithm."""
        of_algorithm = ALGORITHMS[self.algorithm].shown_by if self.algorithm and not self.config else ()
        return NO_PAGE_MAPCOUNT in (*self.config.splitlines(), *of_algorithm)

    @property
    def page_size(self) -> int:
        """Bytes of its base pages."""
        return page_size(self.image)


@dataclass
class Result:
    """What one kernel gave.

    algorithm: what it was compared with. averages: whether the kernel shows averages of mapcounts. `seconds`:
    of boot and cases; of the replays.
    """

    kernel: str
    release: str = ""
    algorithm: str = ""
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    missing_probes: list[str] = field(default_factory=list)
    averages: bool = False
    boot_seconds: float = 0.0
    replay_seconds: float = 0.0

    @property
    def cases(self) -> list[str]:
        """The compared cases, in order."""
        return list(dict.fromkeys(row.case for row in self.rows))

    @property
    def differing(self) -> list[str]:
        """The cases that differ in at least one counter."""
        return list(dict.fromkeys(row.case for row in self.rows if not row.agrees))

    @property
    def unexplained(self) -> list[str]:
        """The cases that differ in something without a known cause."""
        return list(dict.fromkeys(row.case for row in self.rows if row.cause == UNEXPLAINED))


def prefixed(say: Progress, kernel: str) -> Progress:
    """Lines of progress with the kernel's name before them."""
    return lambda line: say(f"{kernel}: {line}")


def lab_kernel(name: str, architecture: Architecture) -> Kernel:
    """One of the lab's kernels: Debian's, downloaded at first use, or built at first use."""
    kernel = architecture.kernels[name]
    if isinstance(kernel, Built):
        return Kernel(name, architecture, built_kernel(architecture, kernel), None)
    tree = kernel_tree(architecture, kernel)
    # since 7.0 the image lies among the modules
    image = next(path for place in _IMAGES for path in tree.glob(place))
    modules = next(path for path in (tree / "usr/lib/modules", tree / "lib/modules") if path.is_dir())
    return Kernel(name, architecture, image, modules)


def named_kernel(image: Path, architecture: Architecture, algorithm: str, extra: tuple[Probe, ...]) -> Kernel:
    """A kernel image of the user's; its modules are taken from ../lib/modules, as in an unpacked package."""
    modules = image.resolve().parent.parent / "lib" / "modules"
    found = modules if image.parent.name == "boot" and modules.is_dir() else None
    kernel = Kernel(image.name, architecture, image, found, algorithm, extra + PROBES)
    if not algorithm and not kernel.config:
        raise LabError(f"no configuration config* beside {image}: say with --algorithm what it does at exit")
    return kernel


def page_size(image: Path) -> int:
    """Bytes of a page, as the header of an arm64 image says; 4096 for others.

    Linux, Documentation/arch/arm64/booting.rst: bits 1 and 2 of the flags.
    """
    with image.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(image) if packed else image.open("rb") as file:
        head = file.read(_IMAGE_HEADER.size).ljust(_IMAGE_HEADER.size, b"\0")
    flags, magic = _IMAGE_HEADER.unpack(head)
    return {2: 16384, 3: 65536}.get(flags >> 1 & 3, 4096) if magic == _IMAGE_MAGIC else 4096


def _xfs(image: Path, page_size: int) -> bool:
    """Make the XFS disk; False where its tools cannot be had: its cases are then skipped by the guest."""
    apt = Apt(OWN)  # mkfs.xfs runs here
    try:
        apt.update()
        initramfs.xfs_disk([apt.unpacked(name) for name in initramfs.XFS_PACKAGES], image, page_size)
    except (LabError, OSError):
        return False
    return True


def _programs(architecture: Architecture) -> list[Path]:
    """Unpacked packages with the real programs; none where this machine's own run in the guest."""
    if architecture is OWN:
        return []
    apt = Apt(architecture)
    apt.update()
    return [apt.unpacked(name) for name in architecture.programs]


def boot_cases(kernel: Kernel, cases: dict[str, str], work: Path, progress: Progress) -> Path:
    """Boot the kernel once for all cases; returns the archive that the guest wrote."""
    size = kernel.page_size
    initramfs.compile_guest(kernel.architecture, work, size)
    loaded = initramfs.modules(kernel.modules) if kernel.modules else []
    initrd = work / "initrd"
    probes = lines(kernel.architecture.machine, kernel.probes)
    initrd.write_bytes(initramfs.initramfs(work, loaded, probes, cases))
    disks = [work / name for name in ("out", "root.ext4", "swap", "xfs")]
    boot.sparse(disks[0], boot.OUTPUT_GIB << 30)
    initramfs.root_disk(work, disks[1], _programs(kernel.architecture), size)
    boot.swap_image(disks[2], size)
    if not _xfs(disks[3], size):
        progress("XFS cannot be had: the cases with large page cache folios are left out")
        disks.pop()
    memory_mib = boot.MEMORY_PAGES * size >> 20
    command = boot.command(kernel.architecture, kernel.image, initrd, disks, memory_mib=memory_mib)
    boot.run(kernel.architecture, command, progress)
    return disks[0]


def run_kernel(
    kernel: Kernel, cases: dict[str, str], work: Path, keep: Path | None, progress: Progress
) -> Result:
    """Boot, run, dump, trace, replay, compare.

    :param work: an empty folder for this kernel, removed by the caller
    :param keep: where the case folders stay; None: they go
    """
    begun = time.monotonic()
    archive = boot_cases(kernel, cases, work, progress)
    booted = time.monotonic()
    result = Result(kernel.name, averages=kernel.averages, boot_seconds=booted - begun)
    with tarfile.open(archive) as tar:
        info = read_boot(tar)
    result.release = info.release
    result.algorithm = kernel.algorithm or _algorithm(kernel, info)
    wanted = dict.fromkeys(probe.event for probe in kernel.probes)
    result.missing_probes = [event for event in wanted if event not in info.probed]
    folders = (keep or work / "cases") / kernel.name
    shutil.rmtree(folders, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for attempt in _last_attempts(read_attempts(tar), result):
            _take(kernel, attempt, info, folders / attempt.case, result)
            if not keep:
                shutil.rmtree(folders / attempt.case, ignore_errors=True)
    result.replay_seconds = time.monotonic() - booted
    return result


def _algorithm(kernel: Kernel, info: Boot) -> str:
    """The name of what a kernel does at exit, as `replay validate` finds it there."""
    names = predict.shown_names()
    shown = info.functions & names | names.intersection(kernel.config.splitlines())
    return predict.algorithm_of(shown).name


def _last_attempts(attempts: Iterable[Attempt], result: Result) -> Iterator[Attempt]:
    """The last attempt of each case: earlier ones met background work."""
    last: Attempt | None = None
    for attempt in attempts:
        if last and last.case != attempt.case:
            yield last
        elif last:
            result.repeated += 1
        last = attempt
    if last:
        yield last


def _take(kernel: Kernel, attempt: Attempt, info: Boot, folder: Path, result: Result) -> None:
    if "skipped" in attempt.files:
        result.skipped.append(attempt.case)
        return
    if "failed" in attempt.files:
        result.failed[attempt.case] = attempt.files["failed"].decode().strip()
        return
    try:
        expected, evidence = write_case(
            attempt, info, kernel.architecture.machine, result.algorithm, kernel.averages, folder
        )
        result.rows += compare(kernel.name, attempt.case, folder, expected, evidence)
    except (LabError, ReplayError) as error:
        result.failed[attempt.case] = str(error)
