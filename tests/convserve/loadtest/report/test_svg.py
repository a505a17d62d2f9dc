import pytest

from convserve.loadtest.report.svg import Axes, element, linear, logarithmic


@pytest.mark.parametrize(
    ("bounds", "labels"),
    [
        pytest.param((0, 87), ["0", "25", "50", "75", "100"], id="ends-at-a-round-number"),
        pytest.param((0, 1), ["0", "0.25", "0.5", "0.75", "1"], id="fractions"),
        pytest.param((0, 0), ["0", "0.25", "0.5", "0.75", "1"], id="empty-range"),
        pytest.param((0, 4000), ["0", "1,000", "2,000", "3,000", "4,000"], id="thousands"),
    ],
)
def test_linear_scale_has_round_ticks(bounds, labels):
    scale = linear(bounds, (0, 100), 4)

    assert [label for _, label in scale.ticks] == labels


def test_snug_scale_ends_with_the_data():
    scale = linear((0, 87), (0, 100), 4, snug=True)

    assert scale(87) == pytest.approx(100)
    assert [label for _, label in scale.ticks] == ["0", "25", "50", "75"]


def test_logarithmic_scale_gives_each_factor_the_same_room():
    scale = logarithmic((12, 900), (0, 200))

    assert [label for _, label in scale.ticks] == ["10", "20", "50", "100", "200", "500", "1,000"]
    assert scale(10) == pytest.approx(0)
    assert scale(100) == pytest.approx(100)


def test_logarithmic_scale_of_many_decades_marks_powers_only():
    scale = logarithmic((0.5, 4000), (0, 200))

    assert [label for _, label in scale.ticks] == ["0.1", "1", "10", "100", "1,000", "10,000"]


def test_line_has_gaps_and_dots_for_lonely_points():
    axes = Axes(linear((0, 4), (0, 40), 4), linear((0, 10), (10, 0), 2))

    drawn = axes.line([(0, 0), (1, 10), None, (3, 5), None], "s1")

    assert drawn == (
        '<path d="M0 10L10 0" class="s1 line"/><circle cx="30" cy="5" r="3" class="s1 dot"/>'
    )


def test_element_escapes_attributes():
    assert element("a", class_='"<', x=1.5, stroke_width=2, id=None) == (
        '<a class="&quot;&lt;" x="1.5" stroke-width="2"/>'
    )
