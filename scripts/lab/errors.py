# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the lab; scripts/kernel_lab turns it into one line and an exit status."""


class LabError(Exception):
    """The lab cannot do what was asked: one line that names the cause and the remedy."""


class UnavailableError(LabError):
    """Something the lab needs (a package, QEMU, a compiler) cannot be had here."""
