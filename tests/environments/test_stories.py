"""Stories under wishes: what each wish accepts, the score's bounds, tasks that keep apart, an expert that wins."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradprism as gp
from gradprism.environments.play import play
from gradprism.environments.pool import SessionPool
from gradprism.environments.stories import tasks
from gradprism.environments.stories.environment import StoriesEnvironment, StoriesExpert
from gradprism.environments.stories.text import forms, repetition, sentences, words
from gradprism.environments.stories.wishes import KINDS, LISTS, NAMES, Wishes
from gradprism.runtime.errors import ConfigError

BARE = StoriesEnvironment(fluency="none")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("... !", 0),
        ("One. Two! Three?", 3),
        ("no stop at the end", 1),
        ("one . two . three .", 3),
        ("Mr. Fox met Dr. Owl. They talked.", 2),
        ("J. Fox was here. And I. The end.", 3),
        ('"Stop!" said Tom. He stopped.', 2),
        ("“Stop!” Tom said. He stopped.", 3),
        ("He waited... and waited. Then he left…", 2),
        ("It cost 3.5 coins. That was much.", 2),
        ("A title\n\nA story. Its end.", 3),
        ("What?! No...", 2),
        ("(He left.) She stayed.", 2),
    ],
)
def test_sentences_of_free_text(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_words_are_letters_in_any_case_without_possessives() -> None:
    assert words("The fox’s well-worn DEN, don't! 3 _x_ Ångström") == [
        "the",
        "fox",
        "well",
        "worn",
        "den",
        "don't",
        "x",
        "ångström",
    ]
    assert (forms("fox"), forms("pony"), forms("key")) == ({"fox", "foxes"}, {"pony", "ponies"}, {"key", "keys"})


def of_words(text: str) -> tuple[bool, ...]:
    return Wishes(words=("fox", "well")).check(text)["words"]


def test_a_wished_word_counts_in_its_plural_and_as_a_possessive_and_not_within_another() -> None:
    assert of_words("FOXES drank; the well's water.") == (True, True)
    assert of_words("A firefox dwells.") == (False, False)
    assert of_words("A fox-trot.") == (True, False)


def test_words_to_avoid_are_avoided_in_all_of_these_forms() -> None:
    avoid = Wishes(avoid=("friend", "old"))
    assert avoid.check("An OLD man.")["avoid"] == (True, False)
    assert avoid.check("Friends' bread, older cheese.")["avoid"] == (False, True)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("He slept. And the sea was calm and blue.", True),
        ('He said: "And the sea was, calm and blue!"', True),
        ("And the sea was calm and blue. He slept.", False),
        ("calm and blue", False),
        ("and the deep sea was calm and blue", False),
    ],
)
def test_the_ending_is_the_last_words_whatever_their_punctuation(text: str, met: bool) -> None:
    assert Wishes(ending="and the sea was calm and blue").check(text)["ending"] == (met,)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("Anna ran. She fell. Anna's knee hurt.", True),
        ("anna ran . anna fell .", True),
        ("Anna and Anna ran. She fell.", False),
        ("Anna ran. Anna met Leo.", False),
        ("Annabel ran. Annabel fell.", False),
        ("She ran.", False),
    ],
)
def test_the_name_is_kept_and_no_other_known_one_appears(text: str, met: bool) -> None:
    assert Wishes(name="Anna").check(text)["name"] == (met,)


def test_the_number_of_sentences_and_that_none_comes_twice() -> None:
    wishes = Wishes(length=3, fresh=True)
    assert wishes.check("A. b c. C d.") == {"length": (False,), "fresh": (True,)}  # what may be an initial ends nothing
    assert wishes.check("He ran. He fell! HE RAN?") == {"length": (True,), "fresh": (False,)}


def test_a_text_without_a_word_meets_no_wish() -> None:
    assert Wishes(avoid=("old",), fresh=True).check("1 ...") == {"avoid": (False,), "fresh": (False,)}


def test_repetition_is_the_share_of_trigrams_that_came_before() -> None:
    assert repetition(["a", "b"]) == 0
    assert repetition(["a", "b", "c", "d"]) == 0
    assert repetition(["a", "a", "a", "a", "a"]) == pytest.approx(2 / 3)


@given(st.text(max_size=300), st.sampled_from(["train/3", "unseen/2", "dev/7", "seen/4"]))
def test_any_text_has_a_score_from_0_to_1(text: str, task_id: str) -> None:
    session = BARE.session()
    session.reset(task_id)
    step = session.step(text)
    assert 0 <= step.info.score <= 1
    assert all(0 <= value <= 1 for value in step.info.parts.values())
    assert step.info.valid == bool(words(text)) == step.done
    assert step.info.success <= (step.info.score == step.reward)


@given(
    st.builds(
        Wishes,
        st.lists(st.sampled_from(tasks.NOUNS), max_size=3, unique=True).map(tuple),
        st.lists(st.sampled_from(LISTS["common"]), max_size=2, unique=True).map(tuple),
        st.integers(0, 6),
        st.sampled_from(["", *LISTS["endings"]]),
        st.sampled_from(["", *NAMES]),
        st.booleans(),
    )
)
def test_wishes_are_read_back_from_their_text(wishes: Wishes) -> None:
    assert Wishes.parse(wishes.text()) == wishes
    assert [kind for kind, _ in wishes.lines()] == list(wishes.check("word"))


def test_splits_keep_apart() -> None:
    of = {split: [tasks.wishes_of(task_id) for task_id in BARE.ids(split)] for split in BARE.splits}
    asked = {split: {frozenset(wishes.words) for wishes in of[split]} for split in of}
    for a, b in [("train", "dev"), ("train", "seen"), ("dev", "seen"), ("train", "unseen"), ("dev", "unseen"), ("seen", "unseen")]:
        assert not asked[a] & asked[b]
    assert not set(tasks.types_of("train")) & set(tasks.types_of("unseen"))
    for field in ("words", "ending", "name"):
        used = {split: {item for wishes in of[split] for item in _items(getattr(wishes, field))} for split in of}
        assert not used["train"] & used["unseen"]
        assert used["train"] | used["unseen"] == used["base"]
    assert {kind for name in tasks.KNOWN for kind in name.split("+")} == set(KINDS)
    types = Counter(BARE.find(task_id).task_type for task_id in BARE.ids("train"))
    assert types == dict.fromkeys(tasks.KNOWN, 300)


def _items(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,) if value else ()


@pytest.mark.parametrize("task_id", ["train/2400", "train/x", "train/", "test/1", "train/01", "train/²", "train"])
def test_unknown_ids_are_refused(task_id: str) -> None:
    with pytest.raises(ConfigError, match=r"stories are train/0|write it train/1"):
        BARE.session().reset(task_id)


def test_the_expert_wins_its_tasks_from_their_text_alone() -> None:
    won, total = 0, 0
    session = BARE.session()
    for split in BARE.splits:
        for task_id in BARE.ids(split)[:240]:
            won += session.step(StoriesExpert().act(session.reset(task_id))).info.success
            total += 1
    assert total == 1200
    assert won >= 0.99 * total


def test_its_stories_are_fluent_to_the_shipped_model_in_any_process_and_nonsense_is_not() -> None:
    environment, chosen = gp.make_environment("stories"), gp.make_environment("stories").tasks("unseen", 24)
    with SessionPool(environment, 2) as pool:
        played = play(pool, chosen, [environment.expert() for _ in chosen], 1)
    assert all(one.last.info.success for one in played)
    session = environment.session()
    for one in played[:4]:
        asked = session.reset(one.task.id)
        assert session.step(one.actions[0]) == one.last
        mixed = words(one.actions[0])
        random.Random(0).shuffle(mixed)
        session.reset(one.task.id)
        assert session.step(" ".join(mixed)).info.parts["fluency"] < 0.5 < one.last.info.parts["fluency"]
        assert asked.observation == one.steps[0].observation
    assert session.step("Once more.").info.valid is False


def test_a_revision_is_asked_for_what_is_missed_and_the_last_story_counts() -> None:
    environment = StoriesEnvironment(fluency="none", revisions=1)
    session = environment.session()
    first = session.reset("train/1")
    again = session.step("A fox.")
    assert (again.done, again.reward) == (False, 0.0)
    assert again.observation.startswith("Not yet: Use the words ")
    last = session.step(environment.expert().act(first))
    assert (last.done, last.info.success) == (True, True)
    assert last.reward == last.info.score > again.info.score
    after = session.step("A fox.")
    assert (after.done, after.info.valid, after.info.success, after.reward) == (True, False, True, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fluency": "/nowhere"}, "is no folder of a model"),
        ({"fluency": "shipped:nope"}, "is no model that comes with gradprism"),
        ({"worst": -1.0, "best": -2.0}, "must be below best"),
        ({"revisions": -1}, "choose 0 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        gp.make_environment("stories", **options)
    assert "\n" not in str(refused.value)


def test_a_model_that_cannot_be_loaded_is_the_users_to_change(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    environment = StoriesEnvironment(fluency=str(tmp_path))
    with SessionPool(environment, 1) as pool, pytest.raises(ConfigError, match="fluency"):
        pool.reset([0], ["train/1"])


def test_the_model_counts_by_its_files_not_by_its_path(tmp_path) -> None:
    import shutil

    shutil.copytree(gp.shipped("stories-tiny"), tmp_path / "copy")
    here, there = gp.make_environment("stories"), StoriesEnvironment(fluency=str(tmp_path / "copy"))
    assert here.identity() == there.identity() != BARE.identity()


def test_from_demonstrations_to_a_round_of_rl_on_scores(tmp_path) -> None:
    model, environment = str(gp.shipped("stories-tiny")), gp.make_environment("stories")
    corpus = gp.collect(environment, split="train", count=16, max_steps=1, workers=1)
    assert [trajectory.task["task_type"] for trajectory in corpus] == 2 * list(tasks.KNOWN)
    routes = gp.route(gp.probe(model, None, corpus, out=tmp_path / "probe"))
    assert len(routes.rl) == 8
    settings = {"tasks_per_round": 4, "rollouts_per_task": 4, "max_steps": 1, "max_action_tokens": 96, "temperature": 0.7}
    config = gp.RlConfig.model_validate({**settings, "rounds": 1, "reward": "score", "dynamic_sampling": True})
    summary = gp.train_rl(model, None, environment, routes.rl, config, out=tmp_path / "rl", workers=1)
    [row] = summary.history
    assert 0 < row["score"] < 1
    assert row["reward"] == pytest.approx(row["score"])
    assert row["grad_norm"] > 0
    assert row["zero_variance_groups"] < 0.5  # a group whose stories fail by different wishes teaches, though none succeeds
