"""The player: what it returns is what the model would say of the same tokens read afresh."""

import os
import random

import pytest
import torch

import gradprism as gp
from gradprism.attention import grouped_attention
from gradprism.environments.prompts import PromptTemplate
from gradprism.environments.protocol import Info, Step, Task
from gradprism.models import load_model
from gradprism.rollouts.cache import SlotCache
from gradprism.rollouts.config import RolloutConfig
from gradprism.rollouts.episode import Episode, StopReason
from gradprism.rollouts.generator import sample
from gradprism.rollouts.player import Player
from gradprism.runtime.errors import ConfigError
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.tiny import tiny_gemma3, tiny_mistral, tiny_qwen3, tiny_tokenizer


class ScriptedPool:
    """Sessions of different lengths that answer with observations of different lengths; what is sent is answered when collected."""

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

    def send(self, method, sessions, arguments):
        return method, sessions, arguments

    def collect(self, pending):
        method, sessions, arguments = pending
        return getattr(self, method)(sessions, arguments)


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
    config = RolloutConfig.model_validate(
        {"max_steps": 6, "max_action_tokens": 5, "in_flight": 8, "context_length": 512, **options}
    )
    return Player(model, Renderer(tokenizer, None), ScriptedPool(), config)  # pyright: ignore[reportArgumentType]


def conversation(episode: Episode) -> list[int]:
    """The tokens of a growing conversation, from its beginning to the last action."""
    return [token for turn in episode.turns for token in (*turn.prompt_ids, *turn.completion_ids)]


def tasks(lengths):
    return [Task("scripted", str(n), "kind", "split") for n in lengths]


def test_logprobs_match_a_fresh_forward_pass_of_each_episode():
    player = make_player()
    episodes = player.play(tasks([1, 5, 2, 9, 3, 1, 4, 2, 7, 6, 1, 1]), seed=1)
    assert len({tuple(len(turn.completion_ids) for turn in e.turns) for e in episodes}) > 8
    assert len({len(conversation(e)) for e in episodes}) > 4  # rows of many lengths, in two batches
    for episode in episodes:
        with torch.no_grad():
            fresh = player.model(input_ids=torch.tensor([conversation(episode)])).logits[0].float().log_softmax(-1)
        at = 0
        for turn in episode.turns:
            at += len(turn.prompt_ids)
            expected = [fresh[at + i - 1, token].item() for i, token in enumerate(turn.completion_ids)]
            assert turn.logprobs == pytest.approx(expected, abs=1e-4)
            at += len(turn.completion_ids)


def test_an_episode_does_not_depend_on_what_is_played_beside_it():
    player = make_player()
    player.config = player.config.model_copy(update={"temperature": 0.0})
    together = player.play(tasks([1, 5, 2, 9, 3]))
    for task, episode in zip(tasks([1, 5, 2, 9, 3]), together, strict=True):
        player.pool = OneSession([1, 5, 2, 9, 3].index(int(task.id)))  # pyright: ignore[reportAttributeAccessIssue]
        [single] = player.play([task])
        assert conversation(single) == conversation(episode)
        assert single.actions == episode.actions


def test_growing_conversation_has_the_tokens_of_one_whole_render():
    player = make_player()
    renderer = player.renderer
    for episode in player.play(tasks([3, 2, 6]), seed=5):
        if any(len(turn.completion_ids) == player.config.max_action_tokens for turn in episode.turns):
            continue  # an action cut at its token limit has no end token of its own, so no render marks it the same
        turns = [Message("user", episode.observations[0])]
        for action, observation in zip(episode.actions, episode.observations[1:], strict=True):
            turns += [Message("assistant", action), Message("user", observation)]
        whole = renderer.render(Trajectory("x", tuple(turns[:-1])))
        played = conversation(episode)
        mask = [chosen for t in episode.turns for chosen in (*[0] * len(t.prompt_ids), *[1] * len(t.completion_ids))]
        assert played[: len(whole.input_ids)] == whole.input_ids.tolist()
        assert mask == whole.response_mask.astype(int).tolist()


def test_rewards_counts_and_endings():
    player = make_player()
    episodes = player.play(tasks([2, 9, 3, 3]), seed=0)
    assert [e.success for e in episodes] == [True, False, True, False]
    assert [e.stop_reason for e in episodes] == ["success", "steps", "success", "environment"]
    assert [len(e.actions) for e in episodes] == [2, 6, 3, 3]
    assert [sum(not turn.valid for turn in e.turns) for e in episodes] == [2, 0, 0, 3]
    assert player.used.environment_steps == 2 + 6 + 3 + 3
    assert player.used.tokens_generated == sum(len(turn.completion_ids) for e in episodes for turn in e.turns)


def test_an_episode_ends_where_the_context_is_full():
    player = make_player(context_length=40)
    [episode] = player.play(tasks([9]), seed=0)
    assert episode.stop_reason == StopReason.CONTEXT
    assert len(conversation(episode)) <= 40
    assert not episode.success


def test_a_prompt_that_leaves_no_room_for_an_action_is_refused():
    with pytest.raises(ConfigError, match="do not fit into a context of 12"):
        make_player(context_length=12).play(tasks([2]))


def test_same_seed_same_episodes_and_another_seed_others():
    first, again, other = (make_player().play(tasks([4, 4, 4]), seed=s) for s in (7, 7, 8))
    assert first == again
    assert [conversation(e) for e in first] != [conversation(e) for e in other]


def fresh_logits(model, sequences):
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1].float() for ids in sequences])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_slot_says_what_a_fresh_pass_says_whatever_it_held_before(attention):
    tokenizer = tiny_tokenizer()
    model = tiny_qwen3(len(tokenizer), layers=2, hidden=32, seed=0).eval()
    model.set_attn_implementation(attention)
    cache, rng = SlotCache(model, 5, 400), random.Random(0)
    held: list[list[int]] = [[] for _ in range(5)]
    read_in_all = 0
    for _ in range(60):
        slots = rng.sample(range(5), rng.randint(1, 5))
        for slot in slots:
            keep = rng.choice([0, len(held[slot]) // 2, len(held[slot]), len(held[slot])])
            keep = 0 if keep > 300 else keep
            held[slot] = held[slot][:keep] + [rng.randrange(6, 60) for _ in range(rng.choice([1, 1, 2, 7, 90]))]
        logits, read = cache.read(slots, [held[slot] for slot in slots])
        read_in_all += read
        torch.testing.assert_close(logits, fresh_logits(model, [held[slot] for slot in slots]), atol=2e-5, rtol=1e-4)
        assert [cache.held(slot) for slot in slots] == [held[slot] for slot in slots]
    # What a slot holds already is not computed again.
    logits, read = cache.read([0, 1], [held[0], held[1]])
    assert read == 2
    logits, read = cache.extend([3, 1], [[7, 8, 9], [10]])
    assert read == 4
    torch.testing.assert_close(logits, fresh_logits(model, [held[3] + [7, 8, 9], held[1] + [10]]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("given", [None, "0"])
def test_shared_heads_are_read_where_they_lie_on_a_cpu_alone_and_change_nothing(monkeypatch, given):
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    monkeypatch.delenv(name, raising=False)
    if given is not None:  # what the user has set stays
        monkeypatch.setenv(name, given)
    model = tiny_qwen3(80, layers=2, hidden=32, seed=0).eval()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    ids = torch.arange(6, 46).reshape(2, 20)
    mask = torch.ones(20, 20, dtype=torch.bool).tril().expand(2, 1, 20, 20)
    copied = model(input_ids=ids, attention_mask=mask).logits
    for device, queries in (("cuda", 20), ("cpu", 1)):
        with grouped_attention(torch.device(device), queries):
            assert os.environ.get(name) == given
    with pytest.raises(ZeroDivisionError), grouped_attention(torch.device("cpu"), 20):
        assert os.environ[name] == (given or "1")
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, copied)
        _ = 1 / 0
    assert os.environ.get(name) == given


def test_slots_that_hold_the_same_sequence_cost_one_of_them():
    model = tiny_qwen3(len(tiny_tokenizer()), layers=2, hidden=32, seed=0).eval()
    cache, prompt = SlotCache(model, 5, 200), list(range(6, 40))
    held = [prompt, prompt, [9, *prompt], prompt, prompt]
    logits, read = cache.read(range(5), held)
    assert read == len(prompt) * 2 + 1
    torch.testing.assert_close(logits, fresh_logits(model, held), atol=2e-5, rtol=1e-4)
    # Two go on alike, two apart; what was copied is a slot's own, and is read on from.
    for tails in ([[7], [7], [7], [8], [9]], [[10, 11], [10, 11], [10, 11], [10, 11], [12]], [[5], [6], [7], [8], [9]]):
        logits, read = cache.extend(range(5), tails)
        held = [ids + tail for ids, tail in zip(held, tails, strict=True)]
        torch.testing.assert_close(logits, fresh_logits(model, held), atol=2e-5, rtol=1e-4)
        assert read == sum(map(len, {tuple(ids): tail for ids, tail in zip(held, tails, strict=True)}.values()))
        assert [cache.held(slot) for slot in range(5)] == held
    # A slot that is taken over in the middle of what it held follows one that holds as much by itself.
    held = [held[0], [*held[0][:20], 50, 51], held[2], held[3], [*held[3][:20], 50, 51]]
    logits, read = cache.read([0, 1, 4], [held[0], held[1], held[4]])
    assert read == 1 + 2
    torch.testing.assert_close(logits, fresh_logits(model, [held[0], held[1], held[4]]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(cache.extend([4], [[30]])[0], fresh_logits(model, [held[4] + [30]]), atol=2e-5, rtol=1e-4)


def test_a_cache_of_windows_sees_what_the_model_would():
    """Gemma 2 and 3 mix layers that see all with layers that see a window; Mistral sees windows only."""
    for build in (tiny_gemma3, tiny_mistral):
        model = build()
        cache = SlotCache(model, 2, 200)
        rng = random.Random(1)
        held = [[rng.randrange(6, 60) for _ in range(n)] for n in (3, 40)]
        for _ in range(6):
            logits, _ = cache.read([0, 1], held)
            torch.testing.assert_close(logits, fresh_logits(model, held), atol=2e-5, rtol=1e-4)
            held = [ids + [rng.randrange(6, 60) for _ in range(rng.randint(1, 9))] for ids in held]


def test_sampling_follows_the_distribution_and_never_draws_what_has_no_chance():
    probabilities = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0]])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = sample(probabilities.log().expand(10_000, -1), uniform)
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 2000, 0, 5000, 3000, 0]
    assert sample(probabilities.log(), torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]


class ByTask(ScriptedPool):
    """What is scripted depends on the task alone, whichever session plays it."""

    def reset(self, sessions, task_ids):
        steps = []
        for session, task_id in zip(sessions, task_ids, strict=True):
            self.steps[session], self.lengths[session] = 0, int(task_id)
            steps.append(Step("you see a cabinet 1 ." + " yes" * int(task_id)))
        return steps

    def step(self, sessions, actions):
        results = []
        for session in sessions:
            self.steps[session] += 1
            done = self.steps[session] >= self.lengths[session]
            results.append(Step("nothing happens ." + " no" * (self.lengths[session] % 5), float(done), done, Info(success=done)))
        return results


@pytest.mark.parametrize("history", [None, 2])
def test_what_is_played_depends_neither_on_places_nor_on_turns(history):
    """Also when it is sampled: each episode draws from a stream of its own. Episodes that end make room for others."""
    wanted = tasks([1, 5, 2, 9, 3, 1, 4, 2, 7, 6, 1, 8, 3])
    played = []
    for in_flight, cohorts in ((13, 1), (13, 2), (4, 2), (3, 3), (1, 1), (5, 8)):
        player = make_player(prompt=PromptTemplate(history=history))
        player.config, player.cohorts = player.config.model_copy(update={"in_flight": in_flight}), cohorts
        player.pool = ByTask()  # pyright: ignore[reportAttributeAccessIssue]
        ended = []
        episodes = player.play(wanted, seed=3, on_done=ended.append)
        assert [e.task for e in episodes] == wanted and len(ended) == 13
        played.append([(conversation(e), e.actions, e.success, e.grows) for e in episodes])
        assert player.used.environment_steps == sum(len(e.actions) for e in episodes)
    assert all(other == played[0] for other in played[1:])
    assert len({tuple(ids) for ids, *_ in played[0]}) > 10


def test_prompts_rebuilt_at_every_step_have_the_log_probabilities_of_a_fresh_pass_and_reuse_their_beginning():
    player = make_player(prompt=PromptTemplate(history=1))
    player.pool = ByTask()  # pyright: ignore[reportAttributeAccessIssue]
    episodes = player.play(tasks([5, 2, 9, 3]), seed=1)
    whole = 0
    for episode in episodes:
        assert not episode.grows
        for turn in episode.turns:
            ids = turn.prompt_ids + turn.completion_ids
            whole += len(ids)
            with torch.no_grad():
                fresh = player.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            expected = [fresh[len(turn.prompt_ids) + i - 1, token].item() for i, token in enumerate(turn.completion_ids)]
            assert turn.logprobs == pytest.approx(expected, abs=1e-4)
    assert 0 < player.used.tokens_forward < 0.8 * whole


def test_a_first_observation_that_does_not_fit_is_an_episode_without_actions_where_asked():
    player = make_player(context_length=22)
    player.refuse_long = False
    player.pool = ByTask()  # pyright: ignore[reportAttributeAccessIssue]
    short, long = player.play(tasks([1, 20]))
    assert (len(short.actions), long.actions, long.stop_reason, long.success) == (1, [], "context", False)


def test_a_model_by_name_plays_what_the_loaded_one_does_with_its_tokenizer():
    path, config = gp.shipped("alfworld-tiny"), RolloutConfig(max_steps=2)
    environment = gp.make_environment("alfworld", difficulty="tiny")
    tasks = environment.tasks("unseen", 2)
    model, tokenizer = load_model(str(path)), load_tokenizer(path)
    expected = [e.to_json() for e in gp.rollout(model, tokenizer, environment, tasks, config, workers=1)]
    for given in (path, str(path), gp.ModelSpec(str(path)), model):
        assert [e.to_json() for e in gp.rollout(given, None, environment, tasks, config, workers=1)] == expected
    with pytest.raises(ConfigError, match="give one"):
        gp.rollout(tiny_qwen3(50), None, environment, tasks, config)
