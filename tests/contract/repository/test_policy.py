"""The rule that decides what is loaded and what answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contract.repository.file import ModelPolicy, RepositoryFile, Requirements
from contract.repository.listing import Listed, Listing
from contract.repository.policy import ModelDecision, decide
from tests.contract.repository.states import decide_cats, listed, listing

LABELS = (("red", "green", "blue"), ("red", "green"), ("blue", "green", "red", "white"))
GOOD = {
    (number, labels): listed("cats", number, labels) for number in range(1, 8) for labels in LABELS
}
BROKEN = Listed(problem="cats/9: broken")

versions = st.dictionaries(
    st.integers(1, 6), st.sampled_from([*LABELS, None]), min_size=1, max_size=6
).map(
    lambda found: {
        number: BROKEN if labels is None else GOOD[number, labels]
        for number, labels in found.items()
    }
)
numbers = st.integers(1, 7)
policies = st.builds(
    ModelPolicy,
    load=st.one_of(
        st.sampled_from(["answering", "all", "none"]),
        st.integers(1, 4).map(lambda newest: {"newest": newest}),
        st.lists(numbers, min_size=1, max_size=3),
    ),
    answer=st.one_of(st.just("latest"), st.just("stable"), numbers),
    aliases=st.builds(dict, stable=numbers),
    require=st.builds(Requirements, labels=st.sampled_from(["keep", "same", "any"])),
)


def decided(policy: ModelPolicy, found: dict[int, Listed]) -> ModelDecision:
    file = RepositoryFile(default="cats", models={"cats": policy})
    return decide(file, Listing({"cats": found}), {}).models["cats"]


@given(policies, versions)
def test_what_is_loaded_is_good_and_on_disk(policy, found):
    one = decided(policy, found)
    assert all(found[number].problem is None for number in one.load)
    assert one.answer is None or one.answer in one.load
    assert list(one.load) == sorted(set(one.load))


@given(policies, versions)
def test_nothing_answers_for_a_reason_only(policy, found):
    one = decided(policy, found)
    assert (one.answer is None) == (one.trouble is not None)


@given(policies, versions)
def test_a_held_version_is_loaded_only_where_it_is_named(policy, found):
    one = decided(policy, found)
    assert {*one.load} & {*one.held} <= policy.named()


@given(policies, versions)
def test_the_order_on_disk_does_not_matter(policy, found):
    assert decided(policy, found) == decided(policy, dict(reversed(found.items())))


@given(policies, versions, numbers)
def test_a_broken_version_that_is_added_does_not_change_the_answer(policy, found, number):
    before = decided(policy, found)
    after = decided(policy, {number: BROKEN, **found})
    assert after.answer == before.answer
    assert after.load == before.load


@given(policies, versions)
def test_a_version_that_fails_to_load_counts_as_broken(policy, found):
    file = RepositoryFile(models={"cats": policy})
    number = max(found)
    failed = decide(file, Listing({"cats": found}), {("cats", number): "cats/9: broken"})
    broken = decide(file, Listing({"cats": {**found, number: BROKEN}}), {})
    assert failed == broken


@given(versions)
def test_a_pinned_model_ignores_what_is_published(found):
    pinned = ModelPolicy(answer=1)
    found = {**found, 1: GOOD[1, LABELS[0]]}
    assert decided(pinned, {**found, 7: GOOD[7, LABELS[0]]}).answer == 1


@given(versions)
def test_a_new_version_that_satisfies_the_requirements_answers(found):
    free = ModelPolicy(require=Requirements(labels="any"))
    assert decided(free, {**found, 7: GOOD[7, LABELS[1]]}).answer == 7


def test_a_version_that_lacks_labels_is_held_back_and_says_so():
    one = decide_cats("", {1: GOOD[1, LABELS[0]], 2: GOOD[2, LABELS[1]]})
    assert one.answer == 1
    assert one.held == {2: "cats/2: held back: it lacks 1 of the 3 labels of version 1: blue"}


def test_a_version_is_compared_with_the_newest_accepted_one():
    found = {1: GOOD[1, LABELS[0]], 2: GOOD[2, LABELS[1]], 3: GOOD[3, LABELS[2]]}
    one = decide_cats("", found)
    assert one.answer == 3
    assert set(one.held) == {2}


def test_the_only_model_is_the_default_and_of_several_none_is():
    assert decide(RepositoryFile(), listing({"cats": [1]}), {}).default == "cats"
    several = decide(RepositoryFile(), listing({"cats": [1], "dogs": [1]}), {})
    assert several.default is None
    assert 'write: default = "cats"' in several.warnings[0]


def test_a_running_services_default_stays_when_a_second_model_appears():
    both = listing({"cats": [1], "ants": [1]})
    assert decide(RepositoryFile(), both, {}, "cats").default == "cats"
    assert decide(RepositoryFile(default="ants"), both, {}, "cats").default == "ants"


def test_a_default_that_is_missing_stays_the_default():
    decision = decide(RepositoryFile(default="dogs"), listing({"cats": [1]}), {})
    assert decision.default == "dogs"
    assert decision.models["dogs"].answer is None
    assert "there is no model 'dogs'" in str(decision.models["dogs"].trouble)
