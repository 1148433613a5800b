# SPDX-License-Identifier: Apache-2.0
"""The failures a user can meet, each with its exit status.

Everything below `cli.py` raises one of these with a message of one line that names
the cause and the remedy; `cli.main` alone prints it and exits.
"""

from __future__ import annotations


class ReplayError(Exception):
    """The world is not as the command needs it: input, processes, rights, machine; exit status 1."""

    status = 1


class UsageError(ReplayError):
    """The command line itself is wrong, whatever files and processes there are; exit status 2.

    That is an unknown name of an algorithm, a malformed value, or options that do not go together.
    """

    status = 2


class StoppedByUserError(ReplayError):
    """Control-C; exit status 130, as of a program that SIGINT ends."""

    status = 130


class ProcessGoneError(ReplayError):
    """The process ended, or gave up its address space, before or while it was read."""


class TraceError(ReplayError):
    """A file is not a trace, or a trace says something that cannot be."""
