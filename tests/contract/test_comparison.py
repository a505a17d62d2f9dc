import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.comparison import (
    UNKNOWN,
    align,
    class_of_folder,
    compare,
    compare_labels,
    divergences,
    paired_difference,
    wilson_interval,
)
from contract.manifest import Label

BEFORE = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]], dtype=np.float32)
LAST_SWAPPED = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], dtype=np.float32)


def labels(*names):
    """Returns labels; "crane/n02012849" has a synset."""
    parts = [(*name.split("/"), None)[:2] for name in names]
    return tuple(Label(index=i, name=name, synset=synset) for i, (name, synset) in enumerate(parts))


def test_compare_counts_and_lists_the_changed_answers():
    found = compare(BEFORE, LAST_SWAPPED, np.array([0, 1, 0, 1]))

    assert (found.n, found.changed, found.max_difference) == (4, (3,), 0.5)
    assert found.agreement.value == 75.0
    assert (found.agreement.low, found.agreement.high) == pytest.approx((30.06, 95.44), abs=0.01)
    assert (found.n_labelled, found.top1_before_percent, found.top1_after_percent) == (4, 100, 75)
    assert found.drop
    assert found.drop.value == 25.0
    assert found.drop.low < 0 < found.drop.high
    # 0.1 log(0.1 / 0.6) + 0.9 log(0.9 / 0.4), over four pictures.
    assert found.kl.value == pytest.approx(0.55067 / 4, abs=1e-5)
    assert found.kl.low == 0.0 < found.kl.value < found.kl.high


def test_compare_takes_top1_from_labelled_pictures_only():
    found = compare(BEFORE, LAST_SWAPPED, np.array([0, UNKNOWN, UNKNOWN, 1]))

    assert (found.n, found.n_labelled, found.top1_after_percent) == (4, 2, 50)


@pytest.mark.parametrize("indexes", [None, np.full(4, UNKNOWN)])
def test_compare_without_labels_has_no_top1(indexes):
    found = compare(BEFORE, BEFORE, indexes)

    assert (found.n_labelled, found.top1_before_percent, found.drop) == (0, None, None)
    assert (found.agreement.value, found.kl.value, found.changed) == (100.0, 0.0, ())


@pytest.mark.parametrize("after", [BEFORE[:3], BEFORE[:, :1], BEFORE[0]])
def test_compare_refuses_answers_of_other_pictures_or_classes(after):
    with pytest.raises(ValueError, match="not the same"):
        compare(BEFORE, after)


def test_compare_refuses_no_pictures():
    with pytest.raises(ValueError, match="N > 0"):
        compare(BEFORE[:0], BEFORE[:0])


def test_compare_with_sigmoid_compares_the_labels_that_reach_one_half():
    before = np.array([[0.9, 0.6], [0.9, 0.1], [0.2, 0.1], [0.5, 0.0]])
    after = np.array([[0.6, 0.9], [0.9, 0.6], [0.1, 0.2], [0.4999, 0.0]])

    found = compare(before, after, activation="sigmoid")

    # The first class of the first and of the third changes, but their labels do not.
    assert found.changed == (1, 3)
    assert found.agreement.value == 50


def test_compare_with_sigmoid_adds_the_divergences_of_the_labels():
    before, after = np.array([[0.8, 0.3]]), np.array([[0.6, 0.3]])

    found = compare(before, after, activation="sigmoid")

    as_two_classes = compare(np.array([[0.8, 0.2]]), np.array([[0.6, 0.4]]))
    assert found.kl.value == pytest.approx(as_two_classes.kl.value)
    twice = compare(before[:, [0, 0]], after[:, [0, 0]], activation="sigmoid")
    assert twice.kl.value == pytest.approx(2 * found.kl.value)


def test_compare_gives_the_same_bounds_every_time():
    assert compare(BEFORE, LAST_SWAPPED) == compare(BEFORE, LAST_SWAPPED)


def test_divergences_of_certain_answers_are_finite():
    certain = np.eye(2, dtype=np.float32)

    assert divergences(certain, certain[::-1]).tolist() == pytest.approx([87.3, 87.3], abs=0.1)


rows = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=5))
def test_divergences_are_zero_only_between_equal_answers(pairs):
    before, after = (
        np.array([pair[side] for pair in pairs])
        / np.sum([pair[side] for pair in pairs], 1)[:, None]
        for side in (0, 1)
    )

    found = divergences(before, after)

    assert (found >= 0).all()
    assert (divergences(before, before) == 0).all()
    # Pinsker's inequality: half the squared L1 distance at least.
    assert (found >= np.abs(before - after).sum(axis=1) ** 2 / 2 - 1e-12).all()


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (15, 148, 0.0624, 0.1605),
    ],
    ids=["third", "none", "all", "tenth"],
)
def test_wilson_interval_equals_published_values(hits, n, low, high):
    """81/263 and 15/148 are the examples of Newcombe 1998, Statistics in Medicine 17, table I."""
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=6e-5)


@settings(deadline=None)
@given(n=st.integers(1, 500), data=st.data())
def test_wilson_interval_contains_the_proportion(n, data):
    hits = data.draw(st.integers(0, n))

    low, high = wilson_interval(hits, n)

    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1
    assert high > low


def pairs(both, one, other, neither):
    """Returns the hits of two graphs, from how many pictures both, one, the other and neither got."""
    return np.repeat(
        np.array([[True, True], [True, False], [False, True], [False, False]]),
        [both, one, other, neither],
        axis=0,
    ).T


def test_paired_difference_of_a_worked_example():
    """p = 2/23 and q = 8/23, so -0.2609 -+ 1.96 * 0.1263; the plain difference is -6/21."""
    found = paired_difference(*pairs(1, 1, 7, 12))

    assert (found.value, found.low, found.high) == pytest.approx(
        (-0.2857, -0.508, -0.013), abs=6e-4
    )


def test_paired_difference_is_antisymmetric_and_never_empty():
    one, other = pairs(80, 5, 2, 13)
    there, back = paired_difference(one, other), paired_difference(other, one)

    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = paired_difference(one, one)
    assert same.low < same.value == 0 < same.high


@pytest.mark.parametrize(("n", "lost", "gained"), [(30, 0.05, 0.02), (225, 0.02, 0.01)])
def test_paired_difference_covers_the_truth(n, lost, gained):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        draw = generator.random(n)
        one, other = draw < 0.5 + lost, (draw < 0.5) | (draw > 1 - gained)
        bounds = paired_difference(one, other)
        covered += bounds.low <= lost - gained <= bounds.high

    assert covered >= 940


def test_compare_labels_finds_what_is_gone_and_what_is_new():
    found = compare_labels(labels("cat", "crow", "owl"), labels("bear", "cat", "owl"))

    assert (found.removed, found.added, found.renamed) == (("crow",), ("bear",), {})
    assert found.places == {1: 0, 2: 2}


def test_compare_labels_tells_classes_of_one_name_apart_by_synset():
    before = labels("crane/n02012849", "crane/n03126707", "tench/n01440764")

    found = compare_labels(before, labels("crane/n03126707", "tench/n01440764"))

    assert found.places == {0: 1, 1: 2}
    assert found.removed == ("crane (n02012849)",)


def test_compare_labels_takes_equal_synsets_for_a_new_name():
    found = compare_labels(labels("kitty/n02123045"), labels("tabby/n02123045"))

    assert (found.renamed, found.removed, found.added) == ({"kitty": "tabby"}, (), ())


def test_compare_labels_matches_by_name_where_a_synset_is_missing():
    found = compare_labels(labels("tench"), labels("tench/n01440764"))

    assert (found.places, found.removed, found.renamed) == ({0: 0}, (), {})


def test_compare_labels_takes_known_pairs_as_renamed():
    found = compare_labels(labels("kitty", "owl"), labels("cat", "owl"), {0: 0})

    assert (found.renamed, found.removed, found.added) == ({"kitty": "cat"}, (), ())


@pytest.mark.parametrize("n", [1, 10, 13, 50, 300])
def test_interval_of_a_perfect_share_ends_at_its_bound(n):
    assert wilson_interval(n, n)[1] == 1.0
    assert wilson_interval(0, n)[0] == 0.0


def test_align_gives_both_answers_the_classes_of_both():
    before = np.array([[0.7, 0.2, 0.1]], dtype=np.float32)  # cat, dog, ant
    after = np.array([[0.4, 0.6]], dtype=np.float32)  # dog, bee

    whole = align(before, after, {0: 1})

    np.testing.assert_array_equal(whole[0], [[np.float32(p) for p in (0.2, 0.0, 0.7, 0.1)]])
    np.testing.assert_array_equal(whole[1], [[np.float32(p) for p in (0.4, 0.6, 0.0, 0.0)]])
    assert whole[2].tolist() == [2, 0, 3]


FOLDER_LABELS = (
    Label(index=0, name="crane", synset="n02012849"),
    Label(index=1, name="crane", synset="n03126707"),
    Label(index=2, name="house finch", synset="n01532829"),
)


@pytest.mark.parametrize(
    ("folder", "index"),
    [
        pytest.param("n01532829", 2, id="synset"),
        pytest.param("house finch", 2, id="name"),
        pytest.param("House_Finch", 2, id="name-with-underscore"),
        pytest.param("crane", None, id="ambiguous"),
        pytest.param("n03126707", 1, id="synset-of-an-ambiguous-name"),
        pytest.param("n00000000", None, id="unknown-synset"),
        pytest.param("sparrow", None, id="unknown-name"),
    ],
)
def test_class_of_folder_is_found_by_synset_or_name(folder, index):
    assert class_of_folder(folder, FOLDER_LABELS) == index
