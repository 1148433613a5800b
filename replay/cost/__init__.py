# SPDX-License-Identifier: Apache-2.0
"""From counts to time: what the operations of a teardown cost on this machine, as an estimate."""
