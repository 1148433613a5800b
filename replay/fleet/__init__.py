# SPDX-License-Identifier: Apache-2.0
"""Thousands of traces: where they are, who replays them, and one part of the result for each."""
