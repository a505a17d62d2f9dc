"""What each verb changes in repository.toml, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ChangeRefused
from contract.repository import changes
from contract.repository.editing import edited_text, preview
from contract.repository.file import ReadRepositoryFile, parse_repository_file
from contract.repository.listing import Listed
from contract.repository.policy import decide
from tests.contract.repository.states import Edited, listed, listing

_NOWHERE = Path("repository.toml")
CATS = listing({"cats": [1, 2, 3], "dogs": [1]})


@pytest.fixture
def edited(tmp_path):
    return lambda text=None, found=CATS: Edited(tmp_path, text, found)


def test_pin_and_unpin(edited):
    cats = edited()
    cats.apply(changes.pin, "cats", 2)
    assert cats.answer() == 2
    assert cats.state.policy("cats").previous == 3
    cats.apply(changes.unpin, "cats")
    assert cats.answer() == 3
    assert cats.state.policy("cats").previous == 2


def test_unpinning_the_latest_version_leaves_previous_as_it_is(edited):
    cats = edited("[models.cats]\nanswer = 3\nprevious = 1\n")
    assert cats.apply(changes.unpin, "cats").updates == {("models", "cats", "answer"): None}
    assert cats.answer() == 3


def test_promote_pins_or_moves_the_alias_that_answers(edited):
    cats = edited('[models.cats]\nanswer = "stable"\naliases = { stable = 1 }\n')
    cats.apply(changes.promote, "cats", 2)
    assert cats.state.policy("cats").aliases == {"stable": 2}
    assert cats.state.policy("cats").answer == "stable"
    assert cats.state.policy("cats").previous == 1
    assert edited("").apply(changes.promote, "cats", 2).updates == {
        ("models", "cats", "answer"): 2,
        ("models", "cats", "previous"): 3,
    }


def test_rollback_goes_back_and_forth(edited):
    cats = edited()
    cats.apply(changes.promote, "cats", 1)
    answers = []
    for _ in range(3):
        cats.apply(changes.rollback, "cats")
        answers.append(cats.answer())
    assert answers == [3, 1, 3]


def test_rollback_of_the_latest_skips_versions_that_are_held_or_broken(edited):
    found = {
        1: listed("cats", 1),
        2: listed("cats", 2, ("red", "green")),
        3: Listed(problem="cats/3: broken"),
        4: listed("cats", 4),
    }
    cats = edited("", listing({"cats": found}))
    cats.apply(changes.rollback, "cats")
    assert cats.answer() == 1


def test_rollback_ignores_a_previous_version_that_answers_already(edited):
    cats = edited("[models.cats]\nprevious = 3\n")
    cats.apply(changes.rollback, "cats")
    assert cats.answer() == 2


def test_rollback_to_a_version_that_is_gone_names_the_others(edited):
    with pytest.raises(ChangeRefused, match=r"cats/9, which answered before, is gone; .* 1, 2, 3"):
        changes.rollback(edited("[models.cats]\nprevious = 9\n").state, "cats")


def test_rollback_without_an_older_version_is_refused(edited):
    with pytest.raises(ChangeRefused, match="dogs has no version to go back to"):
        changes.rollback(edited().state, "dogs")


def test_an_alias_is_set_moved_and_removed(edited):
    cats = edited()
    cats.apply(changes.alias, "cats", "canary", 1)
    assert set(cats.state.decision.models["cats"].load) == {1, 3}
    cats.apply(changes.alias, "cats", "canary", 2)
    assert cats.state.policy("cats").aliases == {"canary": 2}
    cats.apply(changes.alias, "cats", "canary", None)
    assert "canary" not in cats.text


def test_the_alias_that_answers_cannot_be_removed(edited):
    cats = edited('[models.cats]\nanswer = "stable"\naliases = { stable = 1 }\n')
    with pytest.raises(ChangeRefused, match="cats answers with stable; pin a version or unpin"):
        changes.alias(cats.state, "cats", "stable", None)


@pytest.mark.parametrize("name", ["Stable", "latest", "3", "", "a" * 33])
def test_a_name_that_cannot_be_an_alias_is_refused(edited, name):
    with pytest.raises(ChangeRefused, match="cannot be an alias"):
        changes.alias(edited().state, "cats", name, 1)


def test_load_adds_to_what_is_loaded_and_unload_takes_away(edited):
    cats = edited()
    cats.apply(changes.load, "cats", 1)
    assert cats.state.decision.models["cats"].load == (1, 3)
    cats.apply(changes.unload, "cats", 1)
    assert cats.state.decision.models["cats"].load == (3,)


def test_unload_and_load_of_a_whole_model(edited):
    dogs = edited('default = "cats"\n')
    dogs.apply(changes.unload, "dogs")
    assert dogs.state.decision.models["dogs"].load == ()
    dogs.apply(changes.load, "dogs")
    assert dogs.state.decision.models["dogs"].load == (1,)
    assert dogs.text.rstrip() == 'default = "cats"'


def test_what_answers_or_has_an_alias_is_not_unloaded(edited):
    cats = edited('default = "cats"\n[models.cats]\naliases = { old = 1 }\n')
    with pytest.raises(ChangeRefused, match="cats/3 answers; promote another version before"):
        changes.unload(cats.state, "cats", 3)
    with pytest.raises(ChangeRefused, match="cats/1 has the alias old; move or remove"):
        changes.unload(cats.state, "cats", 1)
    with pytest.raises(ChangeRefused, match="cats is the default model; set another default"):
        changes.unload(cats.state, "cats")


def test_default_is_a_model_that_can_answer(edited):
    both = edited('[models.dogs]\nload = "none"\n')
    both.apply(changes.default, "cats")
    assert both.state.decision.default == "cats"
    with pytest.raises(ChangeRefused, match="`convserve models load dogs` loads it"):
        changes.default(both.state, "dogs")


def test_a_model_without_a_good_version_does_not_become_the_default(edited):
    broken = listing({"cats": [1], "dogs": {1: Listed(problem="dogs/1: broken")}})
    with pytest.raises(ChangeRefused, match=r"cannot be the default model.* dogs/1: broken"):
        changes.default(edited("", broken).state, "dogs")


@pytest.mark.parametrize("verb", [changes.pin, changes.promote, changes.load, changes.unload])
def test_a_model_that_does_not_exist_is_refused_with_the_names(edited, verb):
    with pytest.raises(ChangeRefused, match="there is no model 'cows'; the models are: cats, dogs"):
        verb(edited().state, "cows", 1)


@pytest.mark.parametrize("verb", [changes.pin, changes.promote, changes.load])
def test_a_version_that_does_not_exist_is_refused_with_the_numbers(edited, verb):
    with pytest.raises(
        ChangeRefused, match="there is no version 7 of cats; the versions are: 1, 2, 3"
    ):
        verb(edited().state, "cats", 7)


@pytest.mark.parametrize("verb", [changes.pin, changes.promote, changes.load])
def test_a_broken_version_is_refused_with_its_problem(edited, verb):
    found = listing({"cats": {1: listed("cats", 1), 2: Listed(problem="cats/2: broken")}})
    with pytest.raises(ChangeRefused, match="cats/2: broken"):
        verb(edited("", found).state, "cats", 2)


@pytest.mark.parametrize(
    ("text", "verb", "arguments"),
    [
        ('default = "cats"', changes.default, ("cats",)),
        ("[models.cats]\nanswer = 2", changes.pin, ("cats", 2)),
        ("", changes.unpin, ("cats",)),
        ("[models.cats]\naliases = { a = 1 }", changes.alias, ("cats", "a", 1)),
        ("", changes.alias, ("cats", "a", None)),
        ("[models.cats]\nanswer = 2", changes.promote, ("cats", 2)),
        ("", changes.load, ("cats",)),
        ("", changes.load, ("cats", 3)),
        ('[models.cats]\nload = "none"', changes.unload, ("cats",)),
        ("", changes.unload, ("cats", 1)),
    ],
)
def test_a_change_that_changes_nothing_says_so_and_writes_nothing(edited, text, verb, arguments):
    cats = edited(text)
    change = cats.apply(verb, *arguments)
    assert not change.updates
    assert change.summary
    assert cats.text == text


number = st.integers(1, 3)
some_verbs = st.one_of(
    st.tuples(st.just(changes.pin), st.tuples(number)),
    st.tuples(st.just(changes.promote), st.tuples(number)),
    st.tuples(st.sampled_from([changes.unpin, changes.rollback, changes.load]), st.just(())),
    st.tuples(st.just(changes.unload), st.one_of(st.just(()), st.tuples(number))),
    st.tuples(st.just(changes.load), st.tuples(number)),
    st.tuples(
        st.just(changes.alias), st.tuples(st.sampled_from("ab"), st.one_of(st.none(), number))
    ),
)


@given(st.lists(some_verbs, max_size=8))
def test_any_sequence_of_changes_leaves_the_model_with_an_answer(verbs):
    file = ReadRepositoryFile(path=_NOWHERE)
    for verb, arguments in verbs:
        state = changes.RepositoryState(_NOWHERE, file, CATS, decide(file.parsed, CATS, {}, "cats"))
        try:
            change = verb(state, "cats", *arguments)
        except ChangeRefused:
            continue
        assert preview(state, change).models["cats"].answer is not None
        text = edited_text(file, change) if change.updates else file.text
        if text is not None:
            file = ReadRepositoryFile(_NOWHERE, text, parse_repository_file(text, "F"))
