# SPDX-License-Identifier: Apache-2.0
"""A disk for the guest with this machine's Python, replay, what it depends on, and a few programs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import initramfs

Ignore = Callable[[Any, list[str]], set[str]]
"""What shutil.copytree() asks which names of a folder to leave out."""
REPOSITORY = Path(__file__).resolve().parents[2]
DISTRIBUTION = "mm-replay"
ENVIRONMENT = Path("/env")
PYTHON = ENVIRONMENT / "bin" / "python"
SOURCES = ENVIRONMENT / "sources"
CACHE = ENVIRONMENT / "cache"
TESTS = ENVIRONMENT / "repository" / "tests"
PREPARE = "import sys; sys.path[:0] = sys.argv[1:]; from replay.capture import loops; loops.prepare()"
DISK_MIB = 2048  # sparse: what is not written takes no room
# The guest compiles nothing: of numba it needs the version, which objects in the cache depend on.
NUMBA = "numba"
NUMBA_FILES = ("__init__.py", "_version.py")
# Of their files: what only builds and tests of theirs need.
SKIPPED = shutil.ignore_patterns(
    "test", "tests", "include", "idlelib", "ensurepip", "tkinter", "config-*", "*.a"
)
PROGRAMS = ("sh", "ls", "sort", "tail", "sleep", "true", "cat", "grep", "sed")
# What of gcc is needed for C: its own folder, the assembler and linker, the C library to link with.
COMPILER = ("gcc", "as", "ld")
LINKED = ("crt1.o", "Scrt1.o", "crti.o", "crtn.o", "libc.so", "libc.so.6", "libc_nonshared.a")
NOT_C = shutil.ignore_patterns(
    "cc1plus", "lto1", "libasan*", "libtsan*", "libubsan*", "libstdc++*", "lib*san*"
)


def make(root: Path, image: Path, kernel: Path) -> list[str]:
    """Make the disk -> what it has beside replay, of `pytest` and `gcc`.

    :param root: a folder that is made, and removed
    :param kernel: the kernel's image: its configuration is beside it, in Debian's packages
    """
    for name in ("usr", "dev", "proc", "sys", "tmp", "boot", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        # as here: the same files have the same names there
        (root / "usr" / name).mkdir()
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    installed = [name for name in ("pytest",) if _is_installed(name)]
    _copy_python(root, [DISTRIBUTION, *installed])
    for name in PROGRAMS:
        _copy_program(name, root)
    if all(shutil.which(name) for name in COMPILER):
        installed.append("gcc")
        _copy_compiler(root)
    for shared in _dynamic(root):
        for library in initramfs.libraries(shared):
            if not (library.is_relative_to(root) or _below(root, library).exists()):
                initramfs.copy_file(library, root)
    for config in kernel.parent.glob("config*"):
        # since 7.0 the package has it beside the modules, without the release in its name
        name = config.name if "-" in config.name else f"config-{kernel.parent.name}"
        shutil.copy2(config, root / "boot" / name)
    initramfs.ext4_disk(root, image, DISK_MIB)
    return installed


def _below(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _copy_program(name: str, root: Path) -> None:
    found = shutil.which(name)
    if found:
        initramfs.copy_file(Path(found), root)


def _copy_tree(source: Path, target: Path, ignore: Ignore = SKIPPED) -> None:
    # with times, so that the compiled files beside the sources are current
    shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)


def _copy_python(root: Path, distributions: list[str]) -> None:
    """The interpreter where it is, and an environment with replay, its tests, and what they depend on."""
    interpreter = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    initramfs.copy_file(interpreter, root)
    shutil.copytree(standard, _below(root, standard), ignore=_of_standard_library, dirs_exist_ok=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = _below(root, ENVIRONMENT) / "lib" / version / "site-packages"
    for source in _packages(distributions):
        if source.name == NUMBA:
            (packages / NUMBA).mkdir(parents=True)
            for file in NUMBA_FILES:
                shutil.copy2(source / file, packages / NUMBA)
        elif source.is_dir():
            _copy_tree(source, packages / source.name)
        else:
            packages.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, packages)
    _copy_tree(REPOSITORY / "replay", packages / "replay")
    _compile(_below(root, CACHE))
    tests = _below(root, TESTS)
    (tests / "validate").mkdir(parents=True)
    for path in (REPOSITORY / "tests" / "__init__.py", *(REPOSITORY / "tests" / "validate").glob("*.py")):
        shutil.copy(path, _below(root, TESTS.parent) / path.relative_to(REPOSITORY))
    _copy_tree(initramfs.SOURCES, _below(root, SOURCES))
    _below(root, PYTHON.parent).mkdir()
    _below(root, PYTHON).symlink_to(interpreter)
    (_below(root, ENVIRONMENT) / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n")


def _compile(cache: Path) -> None:
    """Compile replay's loops for the guest, which has no numba to do it; its XDG_CACHE_HOME is CACHE."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    subprocess.run([sys.executable, "-c", PREPARE, str(REPOSITORY)], env=environment, check=True)


def _of_standard_library(folder: str, names: list[str]) -> set[str]:
    return SKIPPED(folder, names) | {"site-packages", "dist-packages"}.intersection(names)


def _packages(distributions: list[str]) -> Iterator[Path]:
    """Top-level files and folders of distributions and what they depend on, but for replay's own."""
    wanted, seen = [*distributions], set()
    while wanted:
        name = wanted.pop()
        if name in seen or not _is_installed(name):
            continue
        seen.add(name)
        found = importlib.metadata.distribution(name)
        wanted += [re.split(r"[^\w.-]", each)[0] for each in found.requires or () if ";" not in each]
        if name != DISTRIBUTION:
            tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
            yield from (Path(str(found.locate_file(top))) for top in sorted(tops))


def _copy_compiler(root: Path) -> None:
    """Enough of gcc to compile and link C."""
    for name in COMPILER:
        _copy_program(name, root)

    def named(file: str) -> Path:
        done = subprocess.run(["gcc", f"-print-file-name={file}"], capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    own = named("libgcc.a").resolve().parent
    _copy_tree(own, _below(root, own), NOT_C)
    _copy_tree(Path("/usr/include"), root / "usr" / "include", shutil.ignore_patterns("c++"))
    for file in LINKED:
        path = named(file)
        if path.is_absolute():
            target = _below(root, path.parent.resolve() / path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _dynamic(root: Path) -> list[Path]:
    """Programs and shared libraries below `root`."""
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(18)
    # e_type: ET_EXEC or ET_DYN, not an object to be linked
    return head[:4] == b"\x7fELF" and int.from_bytes(head[16:18], "little") in (2, 3)
