import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from contract.manifest import Parity
from contract.preprocessing import reference_input
from tests.pictures import photo
from tests.training.helpers import tinynet
from training.data.pictures import Picture, input_rows
from training.errors import ParityFailed
from training.evaluation.parity import (
    MAX_DIFFERENCE,
    check_parity,
    measure_parity,
    reference_probabilities,
    without_transparency,
)
from training.evaluation.scorer import Scorer


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_by_metadata(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif, quality=95)


@pytest.fixture
def odd_pictures():
    """Files that are easy to preprocess wrongly: odd sizes, grey, tiny and rotated by metadata."""
    return [
        Picture("odd.png", encoded(photo((301, 77), 1))),
        Picture("tall.png", encoded(photo((40, 203), 2))),
        Picture("grey.png", encoded(photo((90, 90), 3).convert("L"))),
        Picture("tiny.png", encoded(photo((3, 5), 4))),
        Picture("rotated.jpg", rotated_by_metadata(photo((120, 80), 5))),
    ]


def test_graph_and_torch_agree_on_image_files(tiny_graph, odd_pictures):
    scorer = Scorer(tiny_graph, tinynet.draft(tiny_graph))
    expected = reference_probabilities(tinynet.TinyNet().eval(), odd_pictures)
    rows = input_rows(odd_pictures, scorer.manifest, reference_input)

    parity, answers = measure_parity(scorer, expected, rows, (1, 2, 7, 8))

    check_parity(parity, answers, expected)
    assert parity.max_abs_difference < 1e-5
    assert parity.top1_agreement_percent == 100.0
    assert (parity.n_images, parity.batch_sizes) == (5, (1, 2, 7, 8))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"resize_size_px": 40}, id="resize"),
        pytest.param({"interpolation": "nearest"}, id="interpolation"),
        pytest.param({"resize_mode": "squash"}, id="aspect"),
    ],
)
def test_wrong_geometry_fails_parity(tiny_graph, odd_pictures, change):
    draft = tinynet.draft(tiny_graph)
    wrong = draft.preprocessing.model_copy(update=change)
    scorer = Scorer(tiny_graph, replace(draft, preprocessing=wrong))
    expected = reference_probabilities(tinynet.TinyNet().eval(), odd_pictures)
    rows = input_rows(odd_pictures, scorer.manifest, reference_input)

    parity, answers = measure_parity(scorer, expected, rows, (2,))

    with pytest.raises(ParityFailed, match="a probability differs by"):
        check_parity(parity, answers, expected)


def parity_of(difference=0.0):
    return Parity(
        reference="x",
        max_abs_difference=difference,
        top1_agreement_percent=0.0,
        n_images=1,
        batch_sizes=(1,),
    )


def test_different_first_class_of_a_near_tie_is_accepted():
    expected = np.array([[0.5, 0.5 - MAX_DIFFERENCE, MAX_DIFFERENCE]], dtype=np.float32)
    answers = expected[:, [1, 0, 2]]

    check_parity(parity_of(), answers, expected)

    assert answers.argmax() != expected.argmax()


def test_different_first_class_of_a_decided_picture_is_refused():
    expected = np.array([[0.6, 0.4]], dtype=np.float32)

    with pytest.raises(ParityFailed, match="1 of 1 pictures have another first class"):
        check_parity(parity_of(), expected[:, ::-1], expected)


def test_transparent_pictures_are_left_out():
    opaque = Picture("a.png", encoded(photo()))
    transparent = Picture("b.png", encoded(photo().convert("RGBA")))

    assert without_transparency([opaque, transparent]) == [opaque]
