# SPDX-License-Identifier: Apache-2.0
"""The replay against the running kernel: each exit observed by tracepoints, compared page by page."""
