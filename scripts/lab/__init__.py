# SPDX-License-Identifier: Apache-2.0
"""The kernel lab: kernels booted in QEMU to check the replay's counts against what real kernels do."""
