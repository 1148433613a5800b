# SPDX-License-Identifier: Apache-2.0
"""What procfs says, as arrays and plain values; nothing else reads the memory files of /proc."""
