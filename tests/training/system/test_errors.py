import pytest

from training.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\n one line\nand more", "one line"),
        ("", "ValueError"),
        ("  \n", "ValueError"),
        ("x" * 300, "x" * 200),
    ],
    ids=["several", "empty", "blank", "long"],
)
def test_first_line_shortens_a_librarys_error(message, line):
    assert first_line(ValueError(message)) == line
