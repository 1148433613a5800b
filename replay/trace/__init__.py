# SPDX-License-Identifier: Apache-2.0
"""The trace: extents of page-table entries, the ground that capture, teardown and report stand on."""
