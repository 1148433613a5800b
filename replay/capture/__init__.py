# SPDX-License-Identifier: Apache-2.0
"""From a live process to the rows of a trace."""
