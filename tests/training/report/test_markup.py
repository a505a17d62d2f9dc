from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.report.markup import Markup, element, join, table


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_element_escapes_text_and_keeps_markup():
    inner = element("b", "<i>")

    assert element("p", inner, "a & b") == "<p><b>&lt;i&gt;</b>a &amp; b</p>"


def test_element_writes_attributes():
    made = element("img", alt='"quoted"', class_="small", aria_label="x", title=None, hidden=False)

    assert made == '<img alt="&quot;quoted&quot;" class="small" aria-label="x">'


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))
def test_any_text_is_read_back_as_the_same_text(text):
    seen = Seen(element("p", text, title=text))

    assert seen.tags == [("p", {"title": text})]
    assert seen.text == text


@pytest.mark.parametrize("joined", [join("<", Markup("<br>")), element("p", 1.5)])
def test_results_are_markup(joined):
    assert isinstance(joined, Markup)


def test_table_heads_rows_and_columns_and_sets_numbers_to_the_right():
    made = table(("class", "answered", "n"), [("<a>", "b", 3)], "pairs", n_text=2)

    tags = [
        (tag, attributes.get("scope"), attributes.get("class"))
        for tag, attributes in Seen(made).tags
    ]
    assert [entry for entry in tags if entry[0] in ("th", "td")] == [
        ("th", "col", None),
        ("th", "col", None),
        ("th", "col", "number"),
        ("th", "row", None),
        ("td", None, None),
        ("td", None, "number"),
    ]
    assert "&lt;a&gt;" in made
    assert "<caption>pairs</caption>" in made


def test_table_of_a_row_too_short_is_refused():
    with pytest.raises(ValueError, match="longer"):
        table(("a", "b"), [("x",)], "t")
