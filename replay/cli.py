# SPDX-License-Identifier: Apache-2.0
"""The command line: its commands, and the one place where errors become messages and exit statuses."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import re
import sys
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer

import replay
from replay.commands import help
from replay.commands.output import note
from replay.errors import ReplayError, UsageError
from replay.support import shortage

OTHERS_OPTIONS: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""For commands whose last argument is another command with its own options."""

COMMANDS: Final[dict[str, tuple[str, str, dict[str, Any] | None]]] = {
    "capture": (help.TAKE, "Capture the page tables of running processes into a trace.", None),
    "record": (help.TAKE, "Run a command and capture each of its processes as it exits.", OTHERS_OPTIONS),
    "run": (help.COMPARE, "Replay the teardown algorithms over traces and compare them.", None),
    "report": (help.COMPARE, "Make a page with charts: counts by algorithm and folio order.", None),
    "sweep": (help.COMPARE, "Replay many traces in parallel.", None),
    "algorithms": (help.COMPARE, "List algorithms, counters and the limits of the model.", None),
    "inspect": (help.TRACES, "Show what a trace maps: folio orders, sharing, VMAs.", None),
    "diff": (help.TRACES, "Show what changed between two traces or results.", None),
    "whatif": (help.TRACES, "Rewrite a trace as if memory had come in other folios.", None),
    "trim": (help.TRACES, "Keep only some processes, VMAs or addresses of a trace.", None),
    "redact": (help.TRACES, "Write a trace without names, PIDs, addresses and frames.", None),
    "validate": (help.CHECK, "Check the replay against exits of the running kernel.", OTHERS_OPTIONS),
    "calibrate": (help.CHECK, "Measure what teardown operations cost on this machine.", None),
    "doctor": (help.CHECK, "Say what works on this machine, and how to get the rest.", None),
}
"""Command, also the name of its module and function -> its group in the help, first line, and settings."""


STATUSES: Final = (
    "Exit status: 0 done, 1 what was asked for cannot be done, 2 the command line is wrong. A command's help "
    "names its other exit statuses."
)


def command_line(names: Iterable[str] = COMMANDS, *, listed: bool = False) -> typer.Typer:
    """The command line with these commands. Only their modules are imported, which the start-up feels.

    listed: import none of them; they are there to be listed in the help.
    """
    app = typer.Typer(
        cls=help.Commands,
        help="How Linux tears down a process's memory, replayed over page tables of real processes.",
        epilog=STATUSES,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_options)
    for name in names:
        panel, text, settings = COMMANDS[name]
        command = _listed if listed else getattr(importlib.import_module(f"replay.commands.{name}"), name)
        app.command(
            name, cls=help.Command, short_help=text, rich_help_panel=panel, context_settings=settings
        )(command)
    return app


def _listed() -> None:
    """A command that is not loaded."""


def _wanted() -> typer.Typer:
    """The command line that the arguments need: a command that is named needs no other."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        return command_line(listed=True)
    return command_line([name for name in arguments[:1] if name in COMMANDS] or COMMANDS)


FOLLOWS: Final = frozenset(("record", "capture", "validate", "calibrate"))
"""Commands that hold or trace processes. They must do so in the process that the user started."""

COLLECT_AFTER: Final = 100_000
"""Objects made between two garbage collections. What is loaded at the start is no garbage."""


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"replay {replay.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options without a command."""


def main() -> None:
    """Run the command line, and end the process.

    It ends at once, because unloading pyarrow, polars and numba would take longer than many a command.
    """
    gc.set_threshold(COLLECT_AFTER)
    _open_streams()
    if shortage.is_limited() and not FOLLOWS.intersection(sys.argv[1:2]):
        os._exit(shortage.supervised(_ended))
    os._exit(_ended())


def _ended() -> int:
    """Run the command -> its exit status, when all output is written."""
    status = _status()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        note(f"replay: cannot write to {STANDARD_OUTPUT}: {error.strerror}")
        status = 1
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return status


STANDARD_OUTPUT: Final = "standard output"
"""What messages call it."""

THREADS: Final = "POLARS_MAX_THREADS"
"""A variable that makes polars panic if it is not a number above 0."""


def _check_settings() -> None:
    """Raise `UsageError` for a setting that would make a library end the command half-way."""
    value = os.environ.get(THREADS, "1")
    if "record" not in sys.argv[1:2] and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise UsageError(f"{THREADS}={value}: expected a whole number above 0: set it right, or unset it")


class _StandardOutput(io.FileIO):
    """Standard output; an error of writing to it names it, as the system itself does not."""

    def write(self, data: Any, /) -> int:
        """Write bytes, as `io.FileIO` does; an `OSError` has `STANDARD_OUTPUT` as its file name."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STANDARD_OUTPUT
            raise


def _name_standard_output() -> None:
    """Have errors of standard output name it, whoever writes to it."""
    was = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(was.fileno(), "w", closefd=False)),
        encoding=was.encoding,
        errors=was.errors,
        line_buffering=was.isatty(),
    )


def _open_streams() -> None:
    """Replace standard streams: closed ones by the null device, standard output by one that names itself.

    Recorded commands still find closed streams closed.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))
    _name_standard_output()


def _wrong_command_line(error: Any) -> int:
    """Tell what typer or click found wrong in the arguments, in one line -> the exit status.

    error: a ClickException, of click or of the copy in typer, which has no public name. Without arguments its
    message is the help.
    """
    text = error.format_message()
    arguments = sys.argv[1:]
    if not arguments:
        typer.echo(text, err=True)
        return int(error.exit_code)
    text = text.rstrip(".").replace("a valid int range", "a whole number")
    text = re.sub(r"(\S+) is not in the range x>=(\d+)", r"\1 is too small, give at least \2", text)
    text = re.sub(r"\.? Did you mean (.*)\?$", r" (did you mean \1?)", text)
    command = " ".join(["replay", *(name for name in arguments[:1] if name in COMMANDS)])
    note(f"replay: {text[:1].lower()}{text[1:]}: see '{command} --help'")
    return int(error.exit_code)


def _drop_output() -> None:
    """Send what is still in the buffer to the null device: standard output takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status() -> int:
    """Run the command -> its exit status. Only here do errors become messages."""
    try:
        _check_settings()
        # typer would tell a wrong command line in four lines
        return int(_wanted()(standalone_mode=False) or 0)
    except SystemExit as ended:
        # where the reader of a pipe is gone, typer replaces standard output by this and ends with 1
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            return 0
        if isinstance(ended.code, str):
            note(ended.code)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except ReplayError as error:
        note(f"replay: {error}")
        return error.status
    except KeyboardInterrupt:
        note("replay: interrupted")
        return 130
    except BrokenPipeError:
        # the reader has all it wants
        _drop_output()
    except BaseException as error:
        if hasattr(error, "format_message"):
            return _wrong_command_line(error)
        # a panic of polars is a BaseException
        line = shortage.told(error)
        if line is None and isinstance(error, OSError) and error.filename == STANDARD_OUTPUT:
            line = f"cannot write to {STANDARD_OUTPUT}: {error.strerror}"
            _drop_output()
        elif line is None and isinstance(error, OSError):
            name = f" {error.filename}" if error.filename else ""
            line = f"cannot go on:{name} {error.strerror or error}"
        if line is None:
            raise
        note(f"replay: {line}")
        return 1
    return 0


if __name__ == "__main__":
    main()
