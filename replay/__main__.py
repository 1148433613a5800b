# SPDX-License-Identifier: Apache-2.0
"""`python -m replay`."""

from replay.cli import main

main()
