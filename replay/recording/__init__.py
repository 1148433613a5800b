# SPDX-License-Identifier: Apache-2.0
"""Every process of a command, captured as it exits."""
