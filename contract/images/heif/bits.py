"""Reads numbers that do not begin at bytes, as video codings write them."""

from __future__ import annotations

from typing import Final

from contract.errors import ImageUndecodable

_MAX_ZEROS: Final = 31  # in front of a number of variable length; codings differ in what 32 mean


class Bits:
    """Reads bits, the most significant first.

    Every method raises `ImageUndecodable` instead of reading beyond the end.
    """

    __slots__ = ("_left", "_value")

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, n: int) -> int:
        """Returns the next `n` bits as an unsigned number."""
        self._left -= n
        if self._left < 0:
            raise ImageUndecodable("the description of the picture ends too early")
        return self._value >> self._left & ((1 << n) - 1)

    def flag(self) -> bool:
        """Returns the next bit."""
        return self.take(1) == 1

    def variable(self) -> int:
        """Returns an unsigned Exp-Golomb number: n zeros, a one and n bits, minus one."""
        zeros = 0
        while not self.flag():
            zeros += 1
            if zeros > _MAX_ZEROS:
                raise ImageUndecodable("the description of the picture has an impossible number")
        return (1 << zeros) - 1 + self.take(zeros)
