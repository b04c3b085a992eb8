"""The arithmetic of launches, on the host: how many tiles cover something, and how wide a padded tile is.

Owns it because Triton's own `cdiv` and `next_power_of_2` are made for kernels: called on the host they take a good part
of the time of a launch, and a step has hundreds of launches. Must never import triton.
"""

from __future__ import annotations


def cdiv(size: int, part: int) -> int:
    """How many parts of `part` cover `size`."""
    return -(-size // part)


def next_power_of_2(size: int) -> int:
    """The least power of two that is not less than `size`, which is at least 1."""
    return 1 << (size - 1).bit_length()
