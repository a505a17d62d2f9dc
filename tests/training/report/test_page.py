import dataclasses
import datetime
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from contract.predictions import softmax
from tests.training.report.test_plots import history
from training.evaluation import calibrate, measures
from training.evaluation.robustness import RobustnessRow
from training.evaluation.speed import StepTime
from training.report import figures
from training.report import page as report
from training.report.data import ReportData, ReportSubject
from training.report.guesses import Guess

SCRIPT = '<script>alert("1")</script>'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects elements and their text, and fails if tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report_data(n_classes: int = 3, **changes: object) -> ReportData:
    """Returns report data with random answers for 60 pictures per split."""
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("validation", "test"):
        indexes = rng.integers(0, n_classes, 60)
        logits = rng.normal(0, 1, (60, n_classes)).astype(np.float32)
        logits[np.arange(60), indexes] += 2
        splits[split] = (logits, indexes)

    calibration = calibrate.calibrate(splits["validation"], splits["test"], 1.5)
    evaluations = {
        name: measures.evaluate(softmax(logits, 1.5), indexes, name)
        for name, (logits, indexes) in splits.items()
    }

    photo = Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = ReportData(
        subject=ReportSubject(
            model="pets",
            version=4,
            architecture="convnet",
            graph="int8",
            dataset="my pets",
            created_at=datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
            config_sha256="ab" * 32,
            machine="a processor, 2 cores",
            command="convserve-train fit pets",
        ),
        labels=tuple(f"class {i}" for i in range(n_classes)),
        counts={"train": (7,) * n_classes, "test": (1234,) * n_classes},
        findings="2 exact duplicates",
        config="seed = 0",
        history=history(3),
        kept_epoch=2,
        head=SimpleNamespace(nll_calibrated=0.75, top1=0.625),
        validation=evaluations["validation"],
        test=evaluations["test"],
        uncalibrated=measures.reliability(softmax(splits["test"][0]), splits["test"][1]),
        calibration=calibration,
        robustness=(RobustnessRow("blurred", "a lot", 200, 71.5, 12.25, 80.0),),
        speed=(StepTime("decode", 50, 3.25, (3.0, 4.0)),),
        thresholds=(measures.ThresholdRow(0.9, 40.0, 97.5), measures.ThresholdRow(0.99, 0.0, None)),
        drawn=(Guess("a/1.jpg", 0, ((0, 0.75), (1, 0.25)), photo),),
        unsure=(Guess("c/3.jpg", 1, ((0, 0.35), (1, 0.3)), photo),),
        mistakes=(Guess("b/2.jpg", 1, ((0, 0.99),), Image.new("RGB", (8, 8))),),
        durations_s={"training": 3725.0, "data check": 2.5},
        notes=("int8 was published.",),
    )

    return dataclasses.replace(data, **changes)  # type: ignore[arg-type]


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws no plots, for tests of the text."""
    monkeypatch.setattr(figures, "to_svg", lambda *_: b"<svg/>")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report.render(report_data()))


def test_report_is_well_formed(page):
    assert page.open == []


def test_report_fetches_nothing(page):
    sources = [attributes["src"] or "" for attributes in page.attributes("img")]

    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert all((a["href"] or "").startswith("#") for a in page.attributes("a"))
    policy = [a["content"] for a in page.attributes("meta") if a.get("http-equiv")]
    assert "default-src 'none'" in (policy[0] or "")


@pytest.mark.usefixtures("no_plots")
def test_report_has_no_address_but_localhost():
    text = report.render(report_data())

    assert "url(" not in text
    assert "@import" not in text
    assert re.findall(r"(?:\w+:)?//[\w.]+", text) == ["http://127.0.0.1"]


def test_report_describes_every_picture(page):
    assert all(attributes["alt"] for attributes in page.attributes("img"))


def test_report_links_lead_to_its_sections(page):
    anchors = [attributes["id"] for attributes in page.attributes("section")]

    assert [(a["href"] or "")[1:] for a in page.attributes("a")] == anchors
    assert anchors == [
        "guesses",
        "accuracy",
        "mistakes",
        "probabilities",
        "robustness",
        "speed",
        "training",
        "data",
        "config",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "pets, version 4",
        "2026-01-02 03:04 UTC",
        "SHA-256 " + "ab" * 32,
        "convserve classify --model pets photo.jpg",
        "convserve-train evaluate pets/4 FOLDER",
        "/v1/models/pets/classify",
        "convserve-train fit pets",
        "int8 was published.",
        "accuracy on 60 test pictures",
        "mean squared error (Brier score)",
        "cross-entropy (NLL)",
        "Here it is 1.5000, fitted on 60 validation pictures",
        "0.9 40.0% 97.50%",
        "0.99 0.0% -",
        "is flagged as unlike the training data",
        "blurred , a lot 71.5 12.2 80.0",
        "decode 3.25 3.00 to 4.00 50",
        "training 1 h 02 min",
        "validation top-1 62.50%, NLL 0.7500",
        "data check 2.5 s",
        "a processor, 2 cores",
        "2 exact duplicates",
        "seed = 0",
        "all 21 3,702",
        "the true class is not among these",
    ],
)
def test_report_contains(page, words):
    assert words in page.text


def test_report_shows_the_measured_numbers(page):
    test = report_data().test
    low, high = test.top1_interval_percent

    assert f"{test.top1_percent:.2f}% top-1 accuracy on 60 test pictures" in page.text
    assert f"95% interval {low:.1f} to {high:.1f}%" in page.text
    assert f"{test.cross_entropy:.4f}" in page.text
    for fitted in report_data().calibration.conformal:
        assert f"{fitted.coverage_percent:g}% {fitted.achieved_percent:.2f}%" in page.text


def test_report_ticks_the_right_guess(page):
    assert "class 0 ✓ 75.0%" in page.text
    assert {"class": "right", "style": "--share:75.0%"} in page.attributes("li")


def test_report_lists_classes_by_f1_lowest_first(page):
    measured = report_data().test.classes
    order = sorted(range(3), key=lambda index: measured[index].f1)

    places = [page.text.index(f"class {i} {100 * measured[i].f1:.1f}") for i in order]

    assert places == sorted(places)


def test_report_keeps_drawn_and_unsure_pictures_apart(page):
    places = [
        page.text.index(words) for words in ("random sample", "a/1.jpg", "least certain", "c/3.jpg")
    ]

    assert places == sorted(places)


def test_report_marks_the_cards_of_wrong_answers(page):
    cards = [a["class"] for a in page.attributes("figure") if "card" in (a.get("class") or "")]

    assert cards == ["card", "card wrong", "card wrong"]


def test_report_starts_with_the_accuracy_and_ends_with_the_config(page):
    places = [page.text.index(words) for words in ("95% interval", "Guess lists", "ab" * 32)]

    assert places == sorted(places)


@pytest.mark.usefixtures("no_plots")
def test_report_lists_classes_without_test_pictures_last():
    answers = np.array([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8]])
    test = measures.evaluate(answers, np.array([0, 1]), "test")

    page = Page(report.render(report_data(test=test)))

    assert "class 1 0.0 0.0 0.0 1 class 0 100.0 100.0 100.0 1 class 2 - - - 0" in page.text


@pytest.mark.usefixtures("no_plots")
def test_report_escapes_html_in_all_its_texts():
    data = report_data(
        labels=(SCRIPT, "b", "c"),
        findings=SCRIPT,
        config=SCRIPT,
        notes=(SCRIPT,),
        durations_s={SCRIPT: 1.0},
        subject=dataclasses.replace(
            report_data().subject, model=SCRIPT, dataset=SCRIPT, machine=SCRIPT
        ),
        drawn=(Guess(SCRIPT, 0, ((0, 1.0),), Image.new("RGB", (4, 4))),),
    )

    page = Page(report.render(data))

    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count("<script>") >= 10


@pytest.mark.usefixtures("no_plots")
def test_report_shows_template_syntax_in_labels_as_text():
    page = Page(report.render(report_data(labels=("{{ data }}", "{% x %}", "{# y #}"))))

    assert {"{{ data }}", "{% x %}", "{# y #}"} <= set(page.words)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"history": ()}, "no epochs to show"),
        ({"mistakes": ()}, "All test pictures were classified correctly"),
        ({"robustness": ()}, "Changed pictures Not measured."),
        ({"speed": ()}, "Speed Not measured."),
        ({"findings": ""}, "Findings of the data check none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_report_without_a_part_says_so(changes, words):
    assert words in Page(report.render(report_data(**changes))).text


@pytest.mark.usefixtures("no_plots")
def test_report_without_an_unlike_rule_does_not_mention_it():
    calibration = report_data().calibration.model_copy(update={"unlike": None})

    page = Page(report.render(report_data(calibration=calibration)))

    assert "flagged as unlike" not in page.text


@pytest.mark.parametrize("n_classes", [2, 12, 60])
def test_report_of_any_number_of_classes_is_small(n_classes):
    text = report.render(report_data(n_classes))

    assert len(text) < 1_500_000
    assert ("top-5" in text) is (n_classes > 5)
    assert ("by class index" in text) is (n_classes > 40)


@pytest.mark.usefixtures("no_plots")
def test_write_report_writes_page_and_plots(tmp_path):
    path = report.write_report(tmp_path / "new" / "report", report_data())

    assert path == tmp_path / "new" / "report" / "report.html"
    assert path.read_text(encoding="utf-8") == report.render(report_data())
    images = sorted(file.name for file in path.parent.glob("*.png"))
    assert images == [
        "confusion.png",
        "curves.png",
        "drawn.png",
        "mistakes.png",
        "reliability.png",
        "unsure.png",
    ]
    for name in images:
        assert Image.open(io.BytesIO((path.parent / name).read_bytes())).width >= 200


@pytest.mark.usefixtures("no_plots")
def test_write_report_leaves_empty_plots_out(tmp_path):
    path = report.write_report(tmp_path, report_data(history=(), mistakes=(), drawn=(), unsure=()))

    assert sorted(file.name for file in path.parent.glob("*.png")) == [
        "confusion.png",
        "reliability.png",
    ]
