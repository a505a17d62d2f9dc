import pytest

from contract.errors import ImageUndecodable
from contract.images.heif.bits import Bits


def bits(text: str) -> Bits:
    return Bits(int(text.ljust(80, "0"), 2).to_bytes(10, "big"))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 0), ("010", 1), ("00110", 5), ("0" * 31 + "1" + "1" * 31, (1 << 32) - 2)],
    ids=["zero", "one", "five", "largest"],
)
def test_variable_numbers_are_exp_golomb(text, number):
    assert bits(text).variable() == number


def test_number_beyond_32_bits_is_refused():
    with pytest.raises(ImageUndecodable, match="impossible number"):
        bits("0" * 32 + "1").variable()
