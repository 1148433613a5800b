# SPDX-License-Identifier: Apache-2.0
"""The guest's files: the initramfs (cpio "newc"), kernel modules, the ext4 disk with real programs."""

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab.architecture import Architecture, compiler
from lab.errors import LabError, UnavailableError

SOURCES = Path(__file__).parent / "guest"
# Each after those that it calls.
INIT_SOURCES = (
    "die.c",
    "blob.c",
    "stream.c",
    "kcore.c",
    "callsites.c",
    "trace.c",
    "pagetable.c",
    "collect.c",
    "programs.c",
    "init.c",
)
STATIC = ("-O2", "-static", "-Wall", "-Wextra")
FREESTANDING = ("-nostdlib", "-nostartfiles", "-ffreestanding", "-fno-stack-protector")
# In the order of need; a module that the kernel has built in is simply not found.
MODULES = ("virtio_pci", "virtio_blk", "ext4", "xfs")
# Modules that only soft dependencies name: file systems ask the crypto layer for crc32c.
SOFT_DEPENDS = {name: ["crc32c_generic"] for name in ("libcrc32c", "ext4")}
PROGRAMS = ("bash", "python3", "perl")
NOT_RUN = shutil.ignore_patterns("doc", "man", "locale", "gconv", "lintian", "__pycache__")
# With pages of 4 KiB: the cases have as many pages of any size.
DISK_MIB = 192
XFS_MIB = 320  # mkfs.xfs refuses less than 300
XFS_PACKAGES = ("xfsprogs", "libinih1", "liburcu8", "libdevmapper1.02.1", "libedit2", "libbsd0", "libmd0")


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    except FileNotFoundError:
        raise UnavailableError(f"{command[0]} is missing: install it and run the lab again") from None
    if done.returncode:
        raise LabError(f"{' '.join(command[:3])} ... failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def compile_guest(architecture: Architecture, folder: Path, page_size: int) -> None:
    """Build `init`, `workload` and `tiny` into the folder."""
    build = compiler(architecture), *STATIC, f"-DPAGE_SHIFT={page_size.bit_length() - 1}"
    _run(*build, "-o", str(folder / "init"), *(str(SOURCES / name) for name in INIT_SOURCES))
    _run(*build, "-o", str(folder / "workload"), str(SOURCES / "workload.c"))
    _run(*build, *FREESTANDING, "-o", str(folder / "tiny"), str(SOURCES / "tiny.c"))


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _module_image(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _module_depends(image: bytes) -> list[str]:
    start = image.find(b"depends=")
    names = image[start + 8 : image.index(b"\0", start)].decode() if start >= 0 else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def modules(tree: Path, wanted: Iterable[str] = MODULES) -> list[tuple[str, bytes]]:
    """(name, image) of the wanted modules below the tree and of what they need, in an order that loads."""
    paths = {_module_name(path): path for path in tree.rglob("*.ko*")}
    images: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in images or name not in paths:
            return
        image = _module_image(paths[name])
        for other in _module_depends(image) + SOFT_DEPENDS.get(name, []):
            add(other)
        images[name] = image

    for name in wanted:
        add(name)
    return list(images.items())


def cpio(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A "newc" archive of (path, mode, data), folders before what is in them."""
    out = bytearray()

    def entry(number: int, path: str, mode: int, data: bytes) -> None:
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.extend(bytes(-len(out) % 4))
        out.extend(data)
        out.extend(bytes(-len(out) % 4))

    for number, (path, mode, data) in enumerate(files, 1):
        entry(number, path, mode, data)
    entry(0, "TRAILER!!!", 0, b"")
    return bytes(out)


def initramfs(
    built: Path,
    loaded: list[tuple[str, bytes]],
    probes: str,
    cases: dict[str, str],
    programs: dict[str, str] | None = None,
) -> bytes:
    """The archive the guest boots from: init, workload, modules, probes; what cases and programs are."""
    folders = ("dev", "proc", "sys", "disk", "xfs", "tmp", "huge", "hugetlb", "modules", "cases", "programs")
    files = [(name, 0o40755, b"") for name in folders]
    files += [(name, 0o100755, (built / name).read_bytes()) for name in ("init", "workload")]
    files += [(f"modules/{i:02}-{name}", 0o100644, image) for i, (name, image) in enumerate(loaded)]
    files += [("probes", 0o100644, probes.encode())]
    files += [(f"cases/{name}", 0o100644, spec.encode()) for name, spec in cases.items()]
    files += [(f"programs/{name}", 0o100644, spec.encode()) for name, spec in (programs or {}).items()]
    return cpio(files)


def libraries(program: Path) -> list[Path]:
    out = _run("ldd", str(program))
    words = [word for line in out.splitlines() for word in line.split() if word.startswith("/")]
    return [Path(word) for word in words]


def copy_file(path: Path, root: Path) -> None:
    target = root / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(path, target)


def _copy_python(root: Path) -> None:
    """The standard library of the system's Python: what a small program of it imports."""
    library = Path(_run("/usr/bin/python3", "-c", "import os; print(os.path.dirname(os.__file__))").strip())
    skip = shutil.ignore_patterns("test", "tests", "__pycache__", "dist-packages", "config-*", "idlelib")
    shutil.copytree(library, root / str(library).lstrip("/"), ignore=skip, dirs_exist_ok=True)
    for shared in (library / "lib-dynload").glob("*.so"):
        for path in libraries(shared):
            copy_file(path, root)


def root_disk(built: Path, image: Path, packages: list[Path], page_size: int) -> None:
    """An ext4 image with `tiny` and real programs.

    :param packages: unpacked packages with the programs; none: this machine's own are taken
    """
    root = image.parent / "root"
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if packages:
        _merge(packages, root)
    else:
        _copy_own_programs(root)
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy(built / "tiny", root / "bin" / "tiny")
    ext4_disk(root, image, DISK_MIB * page_size // 4096)


def _merge(packages: list[Path], root: Path) -> None:
    """Unpacked packages into one tree, with /bin, /sbin and /lib below /usr as on an installed system."""
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for tree in packages:
        for top in tree.iterdir():
            shutil.copytree(
                top, (root / top.name).resolve(), symlinks=True, ignore=NOT_RUN, dirs_exist_ok=True
            )


def _copy_own_programs(root: Path) -> None:
    for name in PROGRAMS:
        path = Path("/usr/bin") / name
        if not path.exists():
            continue
        copy_file(path, root)
        for library in libraries(path):
            copy_file(library, root)
        if name == "python3":
            _copy_python(root)


def ext4_disk(root: Path, image: Path, mib: int) -> None:
    """An ext4 image of what is below `root`, which is removed."""
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(image), f"{mib}M")
    shutil.rmtree(root)


def xfs_disk(trees: list[Path], image: Path, page_size: int) -> None:
    """An empty XFS: the file system whose page cache has large folios.

    :param trees: unpacked XFS_PACKAGES: mkfs.xfs and the libraries it may need
    """
    tool = next(path for tree in trees for path in tree.glob("sbin/mkfs.xfs"))
    libraries = ":".join(str(path) for tree in trees for path in tree.glob("**/*-linux-gnu"))
    with image.open("wb") as file:
        file.truncate((XFS_MIB << 20) * page_size // 4096)
    _run(str(tool), "-q", str(image), env={"LD_LIBRARY_PATH": libraries, "PATH": os.environ["PATH"]})
