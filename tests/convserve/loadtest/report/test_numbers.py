import pytest

from convserve.loadtest.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(0, "0", id="zero"),
        pytest.param(0.01234, "0.0123", id="small"),
        pytest.param(9.996, "10.0", id="rounds-up-a-digit"),
        pytest.param(12.345, "12.3", id="tens"),
        pytest.param(999.96, "1,000", id="rounds-up-to-thousands"),
        pytest.param(12345.6, "12,346", id="all-digits-before-the-point"),
    ],
)
def test_figures_keeps_three_digits(value, text):
    assert numbers.figures(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        pytest.param(0, "0%", id="none"),
        pytest.param(0.00004, "under 0.01%", id="never-zero-if-there-is-one"),
        pytest.param(0.0012, "0.12%", id="small"),
        pytest.param(0.386, "38.6%", id="usual"),
        pytest.param(0.99996, "over 99.99%", id="never-all-if-one-is-missing"),
        pytest.param(1, "100%", id="all"),
    ],
)
def test_percent_rounds_to_none_or_all_only_if_exact(share, text):
    assert numbers.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(5, "5 s", id="seconds"),
        pytest.param(1.256, "1.26 s", id="parts-of-a-second"),
        pytest.param(7200, "2 h", id="hours"),
        pytest.param(3725, "1 h 2 min 5 s", id="all-units"),
    ],
)
def test_duration_uses_units_that_fit(seconds, text):
    assert numbers.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_objective_is_spaced():
    terms = numbers.objective("p99<200ms,p50<=0.1s,errors<0.1%")

    assert terms == "p99 < 200 ms, p50 <= 0.1 s, errors < 0.1%"
