# SPDX-License-Identifier: Apache-2.0
"""Python functions as machine code: compiled by numba once, then loaded by LLVM without numba.

`compiled` marks functions and calls them, `build` compiles in a child process, `load` puts objects into
memory, `cache` keeps them in the user's cache folder.
"""
