# SPDX-License-Identifier: Apache-2.0
"""The corpus: real programs, brought into a known state and captured. `../capture_corpus` is its command."""
