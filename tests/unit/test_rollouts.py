"""The player: what it returns is what the model would say of the same tokens read afresh."""

from dataclasses import replace

import pytest
import torch

from gradprism.environments.protocol import Info, Step, Task
from gradprism.errors import ConfigError
from gradprism.rollouts.cache import ConversationCache
from gradprism.rollouts.episodes import PlayConfig, Player
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import tiny_qwen3, tiny_tokenizer


class ScriptedPool:
    """Sessions of different lengths that answer with observations of different lengths."""

    def __init__(self) -> None:
        self.steps: dict[int, int] = {}
        self.lengths: dict[int, int] = {}

    def reset(self, sessions, task_ids):
        for session, task_id in zip(sessions, task_ids, strict=True):
            self.steps[session], self.lengths[session] = 0, int(task_id)
        return [Step("you see a cabinet 1 , a drawer 2 ." + " yes" * self.lengths[s]) for s in sessions]

    def step(self, sessions, actions):
        results = []
        for session in sessions:
            self.steps[session] += 1
            done = self.steps[session] >= self.lengths[session]
            results.append(
                Step(
                    "nothing happens ." + " no" * (session % 5),
                    float(won := done and session % 2 == 0),
                    done,
                    Info(valid=session % 3 > 0, success=won),
                )
            )
        return results


class OneSession(ScriptedPool):
    """Plays a single session under another number than the player's, since what is scripted depends on the number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def reset(self, sessions, task_ids):
        return super().reset([self.number], task_ids)

    def step(self, sessions, actions):
        return super().step([self.number], actions)


def make_player(**options) -> Player:
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(len(tokenizer), layers=2, hidden=32, seed=3).eval()
    # Actions of many lengths, so that rows of a batch end their turns at different times, and of words alone.
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.all_special_ids] = -100.0
    bias[tokenizer.eos_token_id] = 3.0
    model.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
    config = PlayConfig(max_steps=6, max_action_tokens=5, temperature=1.0, in_flight=8, **options)
    return Player(model, Renderer(tokenizer, 512), ScriptedPool(), config)  # pyright: ignore[reportArgumentType]


def tasks(lengths):
    return [Task("scripted", str(n), "kind", "split") for n in lengths]


def test_logprobs_match_a_fresh_forward_pass_of_each_episode():
    player = make_player()
    episodes = player.play(tasks([1, 5, 2, 9, 3, 1, 4, 2, 7, 6, 1, 1]), seed=1)
    assert len({tuple(map(len, runs(e.action_mask))) for e in episodes}) > 8
    assert len({len(e.completion_ids) for e in episodes}) > 4  # rows of many lengths, in two batches, with squeezing between turns
    for episode in episodes:
        ids = torch.tensor([episode.prompt_ids + episode.completion_ids])
        with torch.no_grad():
            fresh = player.model(input_ids=ids).logits[0].float().log_softmax(-1)
        for position, (token, chosen) in enumerate(zip(episode.completion_ids, episode.action_mask, strict=True)):
            if chosen:
                expected = fresh[len(episode.prompt_ids) + position - 1, token].item()
                assert episode.logprobs[position] == pytest.approx(expected, abs=1e-4)
            else:
                assert episode.logprobs[position] == 0.0


def test_an_episode_does_not_depend_on_what_is_played_beside_it():
    player = make_player()
    player.config = replace(player.config, temperature=0.0)
    together = player.play(tasks([1, 5, 2, 9, 3]))
    for task, episode in zip(tasks([1, 5, 2, 9, 3]), together, strict=True):
        player.pool = OneSession([1, 5, 2, 9, 3].index(int(task.id)))  # pyright: ignore[reportAttributeAccessIssue]
        [single] = player.play([task])
        assert single.completion_ids == episode.completion_ids
        assert single.actions == episode.actions


def test_growing_conversation_has_the_tokens_of_one_whole_render():
    player = make_player()
    renderer = player.renderer
    for episode in player.play(tasks([3, 2, 6]), seed=5):
        if any(length == player.config.max_action_tokens for length in map(len, runs(episode.action_mask))):
            continue  # an action cut at its token limit has no end token of its own, so no render marks it the same
        turns = [Message("user", episode.observations[0])]
        for action, observation in zip(episode.actions, episode.observations[1:], strict=True):
            turns += [Message("assistant", action), Message("user", observation)]
        whole = renderer.render(Trajectory("x", tuple(turns[:-1])))
        played = episode.prompt_ids + episode.completion_ids
        assert played[: len(whole.input_ids)] == whole.input_ids.tolist()
        assert ([0] * len(episode.prompt_ids) + episode.action_mask)[: len(played)] == whole.response_mask.astype(int).tolist()


def runs(mask):
    """Maximal runs of ones."""
    return [run for run in "".join(map(str, mask)).split("0") if run]


def test_rewards_counts_and_endings():
    player = make_player()
    episodes = player.play(tasks([2, 9, 3, 3]), seed=0)
    assert [e.success for e in episodes] == [True, False, True, False]
    assert [e.ended_by for e in episodes] == ["environment", "steps", "environment", "environment"]
    assert [len(e.actions) for e in episodes] == [2, 6, 3, 3]
    assert [e.valid.count(False) for e in episodes] == [2, 0, 0, 3]
    assert player.statistics.environment_steps == 2 + 6 + 3 + 3
    assert player.statistics.tokens_generated == sum(sum(e.action_mask) for e in episodes)


def test_an_episode_ends_where_the_context_is_full():
    player = make_player(context_length=40)
    [episode] = player.play(tasks([9]), seed=0)
    assert episode.ended_by == "context"
    assert len(episode.prompt_ids) + len(episode.completion_ids) <= 40
    assert not episode.success


def test_a_prompt_that_leaves_no_room_for_an_action_is_refused():
    with pytest.raises(ConfigError, match="do not fit into a context of 12"):
        make_player(context_length=12).play(tasks([2]))


def test_same_seed_same_episodes_and_another_seed_others():
    first, again, other = (make_player().play(tasks([4, 4, 4]), seed=s) for s in (7, 7, 8))
    assert [e.completion_ids for e in first] == [e.completion_ids for e in again]
    assert [e.completion_ids for e in first] != [e.completion_ids for e in other]


def test_cache_squeezing_changes_no_logits():
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(len(tokenizer), layers=2, hidden=32, seed=0).eval()
    kept, squeezed = ConversationCache(model, 3), ConversationCache(model, 3)
    for cache in (kept, squeezed):
        cache.append([[5, 6, 7, 8], [9], [10, 11]])
        cache.append([[12], [13, 14, 15], []])
    squeezed.select([0, 1])
    assert squeezed.mask_BC.shape == (2, 5)
    assert squeezed.waste() < kept.waste()
    a = kept.append([[20, 21], [22], [23]])[:2]
    b = squeezed.append([[20, 21], [22]])
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
