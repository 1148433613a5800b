"""Loops over words and pages as machine code: written in Python, compiled by numba once, loaded without it.

To import numba takes longer than most captures. So what it makes of the functions marked with
`function.native` is kept as an *image*, plain machine code in the user's cache folder, and put into memory
in less than a millisecond.
"""
