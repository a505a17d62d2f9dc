"""Whatever a server answers, a body kind returns classes or raises ValueError."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from convserve.loadtest.bodies import BODIES
from convserve.loadtest.bodies.answers import _AROUND, _LABEL, _LABELS, _SCORE, _SCORES

OIP = ("outputs", "name", "datatype", "shape", "data", "parameters", "binary_data_size")
KEYS = st.sampled_from((*_AROUND, *_LABEL, *_LABELS, *_SCORE, *_SCORES, *OIP, "error", "code"))
TYPES = st.sampled_from(("BYTES", "FP32", "INT64", "UINT8", "0.5:1:cat", "[1", '{"label": "x"}'))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3)
    | TYPES
)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)
OUTPUTS = st.fixed_dictionaries(
    {"datatype": TYPES, "shape": st.lists(st.integers(-1, 4), max_size=3)},
    optional={
        "name": st.just("scores"),
        "data": DOCUMENTS | st.lists(LEAVES, max_size=8),
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)}),
    },
)
# How long examples take says nothing about the code, least of all on a busy machine.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def classes_or_refusal(name: str, content: bytes) -> None:
    try:
        classes = BODIES[name].first_classes(content)
    except ValueError:
        return
    assert classes
    assert all(type(one) is str for one in classes)


@pytest.mark.parametrize("name", BODIES)
@untimed
@given(document=DOCUMENTS)
@example(document={"scores": [0.5, 10**400]})
@example(document={"scores": [1e308, 1e308, 0.5]})
@example(document={"outputs": [{"datatype": "FP32", "shape": [1, 2], "data": [10**400, 0.5]}]})
def test_any_json_gives_classes_or_a_refusal(name, document):
    classes_or_refusal(name, json.dumps(document).encode())


@pytest.mark.parametrize("name", ["oip", "oip-binary"])
@untimed
@given(outputs=st.lists(OUTPUTS, max_size=2), blob=st.binary(max_size=18))
def test_any_outputs_give_classes_or_a_refusal(name, outputs, blob):
    classes_or_refusal(name, json.dumps({"outputs": outputs}).encode() + blob)


@pytest.mark.parametrize("name", BODIES)
@untimed
@given(content=st.binary())
def test_any_bytes_give_classes_or_a_refusal(name, content):
    classes_or_refusal(name, content)
