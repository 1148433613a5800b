# SPDX-License-Identifier: Apache-2.0
"""Processes as such: started, followed, stopped and let go."""
