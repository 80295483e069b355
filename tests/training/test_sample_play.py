"""Sampled episodes have the tokens that RL would read of them."""

import pytest

from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.pool import SessionPool
from gradprism.environments.prompts import PromptTemplate
from gradprism.training.rl_config import RlConfig
from gradprism.training.sample_play import play_randomly, play_some, rows_of
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer, load_tokenizer


@pytest.mark.parametrize("prompt", [PromptTemplate(), PromptTemplate(history=2, form="tags", admissible=True)])
def test_random_episodes_have_the_tokens_that_they_would_have_in_training(prompt):
    environment, renderer = AlfworldEnvironment("tiny"), Renderer(load_tokenizer("models/alfworld-tiny"), 1024)
    config = RlConfig(max_steps=4, max_action_tokens=16, prompt=prompt)
    with SessionPool(environment, 1) as pool:
        played = play_randomly(renderer, pool, environment.tasks("train", 3), config, 1024)
    for episode, turns in played:
        assert 1 <= len(turns) == len(episode.turns) <= 4
        read, said, rows = sum(read for read, _ in turns), sum(said for _, said in turns), rows_of(turns, config)
        assert sum(rows) == read + said
        if prompt.history is None:
            messages = [Message("user", episode.observations[0])]
            for action, seen in zip(episode.actions, episode.observations[1:], strict=True):
                messages += [Message("assistant", action), Message("user", seen)]
            whole = renderer.render(Trajectory("x", tuple(messages[:-1]), {}, ""))
            assert rows == [len(whole.input_ids)]
            assert said == whole.response_mask.sum()
        else:
            assert len(rows) == len(turns) and said == 16 * len(turns)


def test_an_episode_ends_where_the_context_does():
    environment, renderer = AlfworldEnvironment("tiny"), Renderer(load_tokenizer("models/alfworld-tiny"), 1024)
    with SessionPool(environment, 1) as pool:
        tasks = environment.tasks("train", 2)
        sample = play_some(None, renderer, pool, tasks, RlConfig(max_steps=50, max_action_tokens=16), 130)
    assert sample.longest <= 130 and not sample.by_model and 0 < sample.steps < 50
