import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.report import page, write_report
from convserve.loadtest.report.server import facts_of
from convserve.loadtest.report.verdict import verdict_of
from convserve.loadtest.results import Capacity, ErrorCount, Result, Stretch
from tests.convserve.loadtest import samples

RESULTS: dict[str, Callable[[], Result]] = {
    "steady": samples.steady_good,
    "one-interval": lambda: samples.steady(seconds=2, n_intervals=1),
    "ramp": samples.ramp,
    "errors-and-timeouts": samples.bad,
    "long-soak": samples.soak,
    "nothing": samples.nothing,
    "unanswered": samples.unanswered,
}
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects ids, references and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.labels: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            elif name == "aria-labelledby":
                self.labels |= set((value or "").split())
            elif name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data.replace("\N{NO-BREAK SPACE}", " ") + " "


def without_spaces(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(name="made", params=list(RESULTS.values()), ids=list(RESULTS), scope="module")
def _made(request: pytest.FixtureRequest) -> Result:
    result: Result = request.param()
    return result


def test_report_of_any_result_is_whole_and_needs_nothing_else(made, tmp_path):
    file = write_report(made, tmp_path)

    html = file.read_text(encoding="utf-8")
    parsed = Page(html)
    assert file == tmp_path / "report.html"
    assert len(html) < 500_000
    assert "script" not in parsed.tags
    assert parsed.links == []
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {"#hatch-rest", "#hatch-refused"}
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.labels <= set(parsed.ids)


def test_report_of_any_result_has_only_finite_numbers_in_charts(made):
    html = page.render(made)

    drawn = re.findall(r'\b(?:d|x|y|cx|cy|width|height|viewBox)="([^"]*)"', html)
    assert drawn
    assert not any("nan" in one.lower() or "inf" in one or "None" in one for one in drawn)


def test_report_escapes_everything_from_outside():
    evil = "<script>alert(1)</script>\"'&"
    result = samples.bad().model_copy(
        update={
            "settings": samples.settings(
                url=evil, objective=evil, pictures=evil, body=evil, path=evil, command=evil
            ),
            "server": samples.server(10).model_copy(
                update={
                    "software": evil,
                    "models": [evil],
                    "metrics": [
                        one.model_copy(update={"name": f'x_requests_total{{status="{evil}"}}'})
                        for one in samples.server(10).metrics
                    ],
                }
            ),
            "machine": samples.MACHINE.model_copy(update={"system": evil, "processor": evil}),
            "invalid_because": [evil],
            "errors": [ErrorCount(code=evil, status=500, n=1, broken=True, example=evil)],
            "stages": [one.model_copy(update={"name": evil}) for one in samples.stages(10)],
            "checks": samples.NO_CHECKS.model_copy(update={"examples": [evil]}),
            "intervals": [one.model_copy(update={"name": evil}) for one in samples.bad().intervals],
        }
    )

    html = page.render(result)

    assert "script" not in Page(html).tags
    assert html.count("&lt;script&gt;") > 20


def test_report_of_nothing_says_so():
    text = without_spaces(Page(page.render(samples.nothing())).text)

    assert "Nothing was measured" in text
    assert "stopped early" in text
    assert "Over time" not in text


def test_report_of_unanswered_requests_shows_no_zero_latency():
    text = without_spaces(Page(page.render(samples.unanswered())).text)

    assert "median latency (p50) no answer" in text
    assert "p99 was not answered" in text
    assert not re.search(r"\b0(\.0*)? ms\b", text)


def test_report_marks_an_unanswered_percentile_in_its_line_as_a_gap():
    html = page.render(samples.bad())

    wide = html[html.index('aria-labelledby="time-wide') :]
    wide = wide[: wide.index("</svg>")]
    lines = re.findall(r'<path d="([^"]*)" class="s1 line"', wide)
    assert len(lines) == 2
    assert 'class="s1 cross"' in wide


def test_report_of_a_ramp_shows_each_trial_and_its_capacity():
    result = samples.ramp()

    html = page.render(result)

    drawn = html[html.index('aria-labelledby="rate-wide') :]
    drawn = drawn[: drawn.index("</svg>")]
    n_answered = sum(one.latency.p99_ms is not None for one in result.trials)
    assert len(re.findall(r'class="s3 (?:kept|missed)"', drawn)) == n_answered
    assert 'class="capacity line"' in drawn
    assert "rate-wide" not in page.render(samples.steady_good())


def test_report_leaves_overlapping_stages_apart():
    stages = [one.model_copy(update={"mean_ms": 1000.0}) for one in samples.stages(10)]

    text = Page(page.render(samples.steady().model_copy(update={"stages": stages}))).text

    assert "overlap" in text


def test_report_adds_no_total_to_the_stages_it_is_made_of():
    total = samples.stages(10)[0].model_copy(update={"name": "total", "mean_ms": 999.0})
    result = samples.steady().model_copy(update={"stages": [*samples.stages(10), total]})

    text = Page(page.render(result)).text

    assert "overlap" not in text
    assert "999" not in text


def test_percentile_rows_mark_what_is_mostly_chance():
    latencies = Latencies()
    latencies.add(np.linspace(0.001, 0.1, 1000))

    rows = {row.name: row for row in page.percentile_rows(latencies)}

    assert (rows["p99"].n_above, rows["p99"].by_chance) == (10, False)
    assert (rows["p99.9"].n_above, rows["p99.9"].by_chance) == (1, True)
    assert rows["slowest"].ms == pytest.approx(100, rel=2e-3)


def test_verdict_of_a_good_run_names_objective_rate_and_latency():
    verdict = verdict_of(samples.steady_good())

    assert (verdict.tone, verdict.headline) == ("good", "Objective met")
    assert "p99 < 200 ms, errors < 0.1%" in verdict.sentence
    assert "At 60 requests a second, half of them" in verdict.sentence


def test_verdict_of_a_missed_objective_names_the_missed_term():
    run = samples.steady()
    missed = samples.trial(
        {name: getattr(run.trials[0], name) for name in Stretch.model_fields},
        ["p99<200ms: p99 was 312.0 ms"],
    )

    verdict = verdict_of(
        run.model_copy(update={"summary": missed, "trials": [missed], "objective_met": False})
    )

    assert (verdict.tone, verdict.headline) == ("bad", "Objective missed")
    assert ": p99 was 312.0 ms (the objective is p99 < 200 ms). At 60 requests" in verdict.sentence


def test_verdict_of_an_invalid_run_comes_before_its_objective():
    result = samples.steady().model_copy(
        update={"valid": False, "invalid_because": ["the sender was late"]}
    )

    verdict = verdict_of(result)

    assert verdict.headline.startswith("Invalid")
    assert verdict.reasons == ("The sender was late.",)


def test_verdict_of_a_ramp_states_the_capacity():
    capacity = Capacity(
        rate_per_s=1237.4, kept_up_to_per_s=1230, missed_from_per_s=None, statement="Never missed."
    )

    verdict = verdict_of(samples.ramp().model_copy(update={"capacity": capacity}))

    assert verdict.headline == "Capacity: 1,237 requests a second"
    assert verdict.sentence.startswith("Never missed. At 92 requests")


def test_server_facts_add_up_what_changed():
    run = samples.steady()
    result = run.model_copy(update={"server": samples.server(1000, n_refused=40)})

    facts = {fact.name: fact.value for fact in facts_of(result)}

    assert facts["requests"] == "200: 960; 503: 40"  # not those for metrics
    assert facts["refusals"] == "queue_time: 40"  # the reason, not the code
    assert facts["pictures in a batch"] == "1.37"  # 960 pictures in 700 runs
    assert facts["lanes busy"] == "55.2%"  # 33.4 s of 60.5 s
    assert "lanes replaced" not in facts


def test_server_facts_of_an_unknown_server_are_none():
    assert facts_of(samples.steady()) == []
