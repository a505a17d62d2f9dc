from __future__ import annotations

from xml.etree import ElementTree

import pytest

from convserve.tuning.drawing import bars, summed_up, svg, table
from convserve.tuning.measuring import Configuration, Sample, Samples

DEFAULT = Configuration(2, 1, 1)
SAMPLES: Samples = {
    DEFAULT: [Sample(rate, 8.0, 7.5, 300.0) for rate in (90.0, 100.0, 110.0)],
    Configuration(2, 1, 4): [Sample(125.0, 32.0, 6.5, 250.0)],
    Configuration(1, 2, 1): [Sample(80.0, 12.5, 9.0, 150.0)],
    Configuration(1, 2, 4): [],
}


def test_summed_up_takes_medians_and_leaves_out_what_was_not_measured():
    points = summed_up(SAMPLES)

    assert [one.configuration for one in points] == list(SAMPLES)[:3]
    first = points[0]
    assert (first.images_per_s, first.images_per_s_low, first.images_per_s_high) == (100, 90, 110)
    assert (first.image_ms, first.rounds) == (20.0, 3)


def test_table_has_a_line_for_each_point():
    _, header, *lines = table(summed_up(SAMPLES), DEFAULT)

    assert header.split()[:3] == ["lanes", "threads", "batch"]
    assert lines[0].split() == (
        "2 1 1 100.0 +-10% 8.0 20.00 7.50 300.0 +-0% default".split()  # noqa: SIM905 - as printed
    )
    assert [line.split()[:4] for line in lines[1:]] == [
        ["2", "1", "4", "125.0"],
        ["1", "2", "1", "80.0"],
    ]


def test_bars_are_as_long_as_the_rates():
    lines = list(bars(summed_up(SAMPLES)))

    assert [line for line in lines if line.endswith(":")] == [
        "2 lanes, 1 thread each:",
        "1 lane, 2 threads each:",
    ]
    lengths = [line.count("=") for line in lines if "=" in line]
    assert lengths == [15, 18, 12]  # of 44 for 300
    assert lines[1].index("|") == lines[1].index("=") + 44


@pytest.mark.parametrize("n_points", [1, 3], ids=["one_batch_size", "two"])
def test_svg_is_a_drawing_of_every_point(n_points):
    points = summed_up(SAMPLES)[:n_points]

    root = ElementTree.fromstring(svg(points, "a <b> & c"))  # noqa: S314 - our own

    def count(tag: str) -> int:
        return len(root.findall(f".//{{http://www.w3.org/2000/svg}}{tag}"))

    assert root[0].text == "a <b> & c"
    assert (count("circle"), count("polyline")) == (n_points, 2 if n_points == 1 else 4)
    for circle in root.findall(".//{http://www.w3.org/2000/svg}circle"):
        assert 60 <= float(circle.attrib["cx"]) <= 640
        assert 50 <= float(circle.attrib["cy"]) <= 310
