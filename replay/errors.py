# SPDX-License-Identifier: Apache-2.0
"""The failures a user can meet, each with its exit status.

Everything below `cli.py` raises one of these with a message of one line that names
the cause and the remedy; `cli.main` alone prints it and exits.
"""

from __future__ import annotations


class ReplayError(Exception):
    """Something in the input, the rights or the machine; exit status 1."""

    status = 1


class UsageError(ReplayError):
    """The command was called wrongly; exit status 2."""

    status = 2


class StoppedByUserError(ReplayError):
    """Control-C; exit status 130, as of a program that SIGINT ends."""

    status = 130


class ProcessGoneError(ReplayError):
    """The process ended, or gave up its address space, before or while it was read."""


class TraceError(ReplayError):
    """A file is not a trace, or a trace says something that cannot be."""
