# SPDX-License-Identifier: Apache-2.0
"""The report: what the tables of counters say, for people and for programs."""
