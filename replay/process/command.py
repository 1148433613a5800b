# SPDX-License-Identifier: Apache-2.0
"""A command started as a shell would start it, but held before its exec; and what our signals mean to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from replay.errors import ReplayError
from replay.process import nested_tracers
from replay.process.ptrace import STOP_SIGNALS

FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Signals that a terminal sends to a whole process group: as a rule the command has them already."""

PASSED: Final = (*FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

NOT_INHERITED: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Ignored by every Python process; the command gets their default action back."""

PASS_AFTER_SECONDS: Final = 0.1
"""How long a signal may take to reach the command by itself, before it is handed on."""


@dataclass
class Command:
    """A command. `seen`: signals that reached it. `stopped_by`: the stop signal that we got, if any."""

    pid: int
    argv: Sequence[str]
    channel: socket.socket
    seen: Counter[int] = field(default_factory=Counter)
    stopped_by: int = 0
    let_go: bool = False
    ended: bool = False
    interrupted: bool = False
    """A signal came that would end it, after it had ended."""


@contextlib.contextmanager
def held(argv: Sequence[str]) -> Iterator[Command]:
    """Fork a child that will become the command when `let_go` is called; it is gone if that never happens.

    Its group, session, environment, streams and other inherited files are those of the caller.
    """
    ours, theirs = socket.socketpair()
    # who ignores it is told of no child's end; Python itself leaves it alone
    is_main = threading.current_thread() is threading.main_thread()
    ignored = is_main and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # no signal may run a Python handler in the child
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if not pid:
        ours.close()
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _become(theirs, argv, before)
    theirs.close()
    started = Command(pid, argv, ours)
    try:
        with ours:
            # a signal that came meanwhile raises here, where the child is let down already
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield started
    finally:
        if not started.let_go:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def let_go(command: Command) -> None:
    """Let the child become the command."""
    command.let_go = True
    with contextlib.suppress(OSError):
        command.channel.send(b"\0")


def check_started(command: Command) -> None:
    """Raise `ReplayError` if the child, which has ended, could not become the command.

    Exit statuses as of a shell: 127 if there is no such command, 126 if it cannot be executed.
    """
    with contextlib.suppress(OSError):
        number = int.from_bytes(command.channel.recv(4, socket.MSG_DONTWAIT), "little")
        if number:
            raise _start_error(command.argv[0], OSError(number, os.strerror(number)))


def _become(channel: socket.socket, argv: Sequence[str], mask: Iterable[int]) -> NoReturn:
    """In the child: wait for the word, then exec. Never returns."""
    try:
        for number in PASSED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        for number in NOT_INHERITED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if channel.recv(1):
            nested_tracers.install()
            os.execvpe(argv[0], list(argv), _environment())
    except OSError as error:
        channel.send((error.errno or 0).to_bytes(4, "little"))
    finally:
        os._exit(127)


def _environment() -> dict[str, str]:
    """The environment that we were started with: Python adds LC_CTYPE in the C locale (PEP 538)."""
    environment = dict(os.environ)
    with contextlib.suppress(OSError):
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(pair.startswith(b"LC_CTYPE=") for pair in given):
            environment.pop("LC_CTYPE", None)
    return environment


def _start_error(name: str, error: OSError) -> ReplayError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        failure = ReplayError(f"no command {name}: name a program in PATH, or give its path")
        failure.status = 127
    else:
        failure = ReplayError(f"cannot execute {name}: {error.strerror}: name a program that can be executed")
        failure.status = 126
    return failure


@contextlib.contextmanager
def signals_passed(command: Command) -> Iterator[None]:
    """Hand on to the command what is sent to us alone, and end by none of it ourselves.

    What is sent to the whole process group, as by a terminal, reaches the command without us and is not
    handed on. Signals that were ignored stay so. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def arrived(number: int, frame: FrameType | None) -> None:
        if number in STOP_SIGNALS:
            command.stopped_by = number
        elif command.ended:
            command.interrupted = True
        later = threading.Timer(PASS_AFTER_SECONDS, _pass_on, (command, number, command.seen[number]))
        later.daemon = True
        later.start()

    before = {number: signal.getsignal(number) for number in PASSED}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, arrived)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _pass_on(command: Command, number: int, seen: int) -> None:
    """Send a signal that we got to the command, unless it has got it since, or its group is another one."""
    with contextlib.suppress(ProcessLookupError):
        same_group = os.getpgid(command.pid) == os.getpgrp()
        if not command.ended and command.seen[number] == seen and (same_group or number not in FROM_TERMINAL):
            os.kill(command.pid, number)


def in_foreground() -> bool:
    """Whether a terminal waits for our process group, whose shell expects it to stop as a whole."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # the leader of a session has nobody to give the terminal back to
        return os.tcgetpgrp(terminal) == os.getpgrp() != os.getsid(0)
    finally:
        os.close(terminal)


def stop_with(command: Command, number: int) -> None:
    """Stop as the command did, by this signal; returns when we are continued."""
    command.stopped_by = 0
    if threading.current_thread() is threading.main_thread():
        handler = None if number == signal.SIGSTOP else signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        if handler is not None:
            signal.signal(number, handler)
