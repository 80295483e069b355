"""RL: what is learnt of an episode, against a loss written out slowly, and trainings that survive what goes wrong."""

import copy
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from gradprism.attention import masks_of
from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.prompts import PromptTemplate
from gradprism.environments.protocol import Task
from gradprism.models import load_model
from gradprism.rollouts.episode import Episode, StopReason, Turn
from gradprism.routing.sets import RlTask
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, MissingFileError, ModelError
from gradprism.runtime.files import write_jsonl
from gradprism.training import folder
from gradprism.training.advantages.grpo import grpo
from gradprism.training.advantages.outcome import Outcome
from gradprism.training.batches import make_batch
from gradprism.training.doctor import AlarmName
from gradprism.training.head import add_head, score_tokens
from gradprism.training.loss import policy_loss
from gradprism.training.rewards import outcome
from gradprism.training.rl import RlTraining, _turn_off_dropout, train_rl
from gradprism.training.rl_check import check_rl
from gradprism.training.rl_config import RlConfig, other_prompt
from gradprism.training.rounds import Rounds, advantages_of, figures_of, has_gradient, repeats
from gradprism.training.rows import Row, row_weight, split_rows, training_rows
from gradprism.training.tasks import TaskStream, as_tasks, read_tasks
from gradprism.training.trees import linear_weight, make_trees, pack
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.broken_games import BrokenGames
from helpers.tiny import tiny_llama, tiny_qwen3, tiny_tokenizer

TASK = Task("x", "t", "k", "s")


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def episode(turns, rewards=None, token=20, task=TASK, **options) -> Episode:
    """`turns` is (tokens of an action, tokens of the observation behind it) pairs."""
    made, read = Episode(task, **options), [6, 7, 8]
    for number, (chosen, seen) in enumerate(turns):
        observation, reward = f"after {number - 1}" if number else "start", rewards[number] if rewards else 0.0
        ids = [token + number + i for i in range(chosen)]
        made.turns.append(Turn(observation, "look", read, ids, [-1.0] * chosen, reward=reward))
        read = [token + 9] * seen
    made.observation = f"after {len(turns) - 1}"
    return made


class Given:
    """Plays the same episodes whatever it is asked."""

    def __init__(self, episodes: list[Episode]) -> None:
        self.episodes = episodes

    def __call__(self, tasks, seed):
        assert len(tasks) == len(self.episodes)
        return self.episodes


def training_on(model, tokenizer, episodes, config: RlConfig, out: Path) -> RlTraining:
    """A training whose rounds are given."""
    config = config.model_copy(update={"context_length": 512})
    training = RlTraining(model, Renderer(tokenizer, 512), None, [TASK], config, out, "cpu")  # pyright: ignore[reportArgumentType]
    training.rounds = Rounds(TaskStream([TASK], 0), Given(episodes), config, config.tasks_per_round)
    return training


def gradients_of(training: RlTraining, model) -> list[dict[str, torch.Tensor]]:
    """Trains; the gradients of each optimizer step."""
    seen, original = [], training.loop.accelerator.clip_grad_norm_

    def watch(parameters, *args, **kwargs):
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return original(parameters, *args, **kwargs)

    training.loop.accelerator.clip_grad_norm_ = watch
    training.run()
    return seen


GROUP = [
    episode([(2, 3), (3, 1), (1, 0)], [0.0, 0.0, 1.0]),
    episode([(1, 2), (4, 0)], [-0.5, 0.0], token=30),
    episode([(5, 0)], [0.25], token=40),
    episode([(1, 6), (1, 1), (2, 4), (1, 0)], [0.0, 0.5, 0.0, 0.0], token=50),
]


def sampled_by(model, episodes: list[Episode]) -> list[Episode]:
    """The episodes with the log-probabilities that the model gives their actions."""
    episodes = copy.deepcopy(episodes)
    for made in episodes:
        ids: list[int] = []
        for turn in made.turns:
            ids += turn.prompt_ids
            for number, token in enumerate(turn.completion_ids):
                with torch.no_grad():
                    turn.logprobs[number] = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
                ids.append(token)
    return episodes


def expected_gradients(model, rows: list[Row], kind: str) -> dict[str, torch.Tensor]:
    """The policy gradient written out: at ratio 1 the clipped objective's gradient is that of advantage · log-probability."""
    model.zero_grad()
    total, n_tokens = torch.zeros(()), sum(len(row.logprobs) for row in rows)
    for row in rows:
        logprobs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        chosen = [i for i, is_action in enumerate(row.chosen) if is_action]
        terms = [logprobs[i - 1, row.ids[i]] * advantage for i, advantage in zip(chosen, row.advantages, strict=True)]
        divisor = {"dapo": n_tokens, "grpo": len(terms) * len(rows), "dr_grpo": 512 * len(rows)}[kind]
        total = total - sum(terms) / divisor
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_pass_on_a_cpu_is_smaller_unless_its_size_is_given():
    assert (RlConfig().micro_batch("cpu"), RlConfig().micro_batch("cuda")) == (2048, 8192)
    assert {RlConfig(micro_batch_tokens=300).micro_batch(device) for device in ("cpu", "cuda")} == {300}


@pytest.mark.parametrize("history", [None, 2])
@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("algorithm", ["grpo", "gigpo"])
def test_the_gradient_is_the_one_written_out_however_rows_are_packed(tokenizer, tmp_path, algorithm, kind, budget, history):
    config = RlConfig(
        algorithm=algorithm,
        rounds=1,
        tasks_per_round=1,
        rollouts_per_task=4,
        loss=kind,
        micro_batch_tokens=budget,
        max_grad_norm=1e9,
        learning_rate=1e-9,
    )
    episodes = copy.deepcopy(GROUP)
    if history:  # one row per step, each with a prompt of its own
        for made in episodes:
            made.grows = False
            for t, turn in enumerate(made.turns):
                turn.prompt_ids = [6, 7, 8, *range(10, 10 + t)]
    model = tiny_llama(len(tokenizer), seed=5)
    training = training_on(model, tokenizer, episodes, config, tmp_path)
    rows = Rounds(TaskStream([TASK], 0), Given(episodes), config, 1).next().rows
    assert len(rows) == (10 if history else 4)
    [seen] = gradients_of(training, model)
    fresh = tiny_llama(len(tokenizer), seed=5)
    for name, gradient in expected_gradients(fresh, rows, kind).items():
        torch.testing.assert_close(seen[name], gradient, atol=2e-6, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
def test_each_update_of_a_round_is_the_gradient_of_its_own_rows(tokenizer, tmp_path, kind):
    config = RlConfig(
        rounds=1,
        tasks_per_round=1,
        rollouts_per_task=4,
        updates_per_round=2,
        epochs_per_round=2,
        loss=kind,
        micro_batch_tokens=30,
        max_grad_norm=1e9,
        learning_rate=1e-9,
    )
    config, tasks = config.model_copy(update={"tasks_per_round": 2, "rollouts_per_task": 2}), [TASK, Task("x", "u", "k", "s")]
    model = tiny_llama(len(tokenizer), seed=5)
    episodes = sampled_by(model, GROUP)
    training = training_on(model, tokenizer, episodes, config, tmp_path)
    rows = Rounds(TaskStream(tasks, 0), Given(episodes), config, 2).next().rows
    seen = gradients_of(training, model)
    first, second = split_rows(rows, 2, seed=4)
    assert {row.group for row in first} != {row.group for row in second}  # whole groups
    assert len(seen) == 4 and len(first) == len(second) == 2
    for gradients, part in zip(seen, (first, second, first, second), strict=True):
        for name, gradient in expected_gradients(tiny_llama(len(tokenizer), seed=5), part, kind).items():
            torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_groups_that_earn_alike_have_the_gradient_of_the_entropy_where_it_has_a_weight(tokenizer, tmp_path, weight):
    config = RlConfig(
        rounds=1,
        tasks_per_round=1,
        rollouts_per_task=4,
        entropy=weight,
        max_grad_norm=1e9,
        learning_rate=1e-9,
        micro_batch_tokens=60,
    )
    episodes = copy.deepcopy(GROUP)
    for turn in (turn for made in episodes for turn in made.turns):
        turn.reward = 0.0
    model, plain = (tiny_llama(len(tokenizer), seed=5) for _ in range(2))
    training = training_on(model, tokenizer, episodes, config, tmp_path)
    [seen] = gradients_of(training, model)
    rows = Rounds(TaskStream([TASK], 0), Given(episodes), config, 1).next().rows
    assert not any(any(row.advantages) for row in rows)
    entropies = []
    for row in rows:
        logprobs = plain(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        entropies += [-(logprobs[i - 1].exp() * logprobs[i - 1]).sum() for i, is_action in enumerate(row.chosen) if is_action]
    (-weight * torch.stack(entropies).mean()).backward()
    for name, parameter in plain.named_parameters():
        assert (parameter.grad.abs().max() > 0) == (weight > 0)
        gradient = seen.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(gradient, parameter.grad, atol=2e-6, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_rl_never_learns_environment_tokens(tokenizer, tmp_path):
    """The last norm's output at a position is all that the prediction of the next token depends on, and no other position reads it."""

    def learnt(episodes):
        model, gradients = tiny_qwen3(len(tokenizer), seed=5), []
        config = RlConfig(rounds=1, tasks_per_round=1, rollouts_per_task=4, learning_rate=1e-3)

        def watch(module, args, output):
            if output.requires_grad:
                output.register_hook(gradients.append)

        model.model.norm.register_forward_hook(watch)
        training_on(model, tokenizer, episodes, config, tmp_path / "out").run()
        [gradient] = gradients
        return (gradient.abs().sum(-1) > 0).tolist()  # at what predicts another token

    rows, weight = (
        [row for e in GROUP for row in training_rows(e, np.zeros(len(e.turns)))],
        linear_weight(tiny_qwen3(len(tokenizer))),
    )
    [trees] = pack(make_trees(rows, weight), 8192)
    expected = [[False] * max(map(len, trees)) for _ in trees]
    for told, tree in zip(expected, trees, strict=True):
        for row, path in zip(tree.rows, tree.paths, strict=True):
            for node, chosen in zip(path, row.chosen, strict=True):
                if chosen:
                    told[tree.parent[node]] = True
    assert learnt(GROUP) == expected and len(trees) < len(GROUP)


def test_rows_of_a_growing_conversation_and_of_one_that_is_rebuilt():
    made = episode([(2, 3), (1, 0)])
    [row] = training_rows(made, torch.tensor([0.5, -1.0]).numpy())
    assert row.chosen == [False] * 3 + [True, True, False, False, False, True] and row.advantages == [0.5, 0.5, -1.0]
    made.grows = False
    made.turns[0].prompt_ids, made.turns[1].prompt_ids = [1], [2, 3]
    first, second = training_rows(made, torch.tensor([0.5, -1.0]).numpy())
    assert (first.ids, first.chosen, first.advantages) == ([1, 20, 21], [False, True, True], [0.5, 0.5])
    assert (second.ids, second.advantages) == ([2, 3, 21], [-1.0])
    assert training_rows(Episode(TASK), torch.zeros(0).numpy()) == []


def test_rows_are_packed_whole_and_within_the_budget():
    rows = [Row([1] * (2 + i % 7 + i * 5 % 40), group=i // 5) for i in range(50)]
    for budget in (1, 64, 500, 10_000):
        packed = pack(make_trees(rows, 0), budget)
        assert sorted(id(r) for part in packed for tree in part for r in tree.rows) == sorted(map(id, rows))
        for part in packed:
            assert max(map(len, part)) * len(part) <= budget or len(part) == 1
    parts = split_rows(rows, 3, seed=1)
    assert [len(p) for p in parts] == [16, 17, 17] and len({id(r) for p in parts for r in p}) == 50
    order = [row.group for part in parts for row in part]
    assert order != sorted(order) and order == [group for group in dict.fromkeys(order) for _ in range(5)]
    rows = [Row([1, 2, 3], [False, False, True], [-0.5], [2.0]), Row([4, 5], [False, True], [-1.0], [1.0]), Row([7], [False])]
    batch = make_batch(make_trees(rows, 0), [0.5, 0.25, 1.0], torch.device("cpu"))
    assert batch.inputs.keys() == {"input_ids"} and batch.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0], [7, 0, 0]]
    assert [places.tolist() for places in batch.places] == [[0, 1], [1, 0], [3, 5]] and batch.repeated.tolist() == [0, 1]
    assert (
        batch.advantages.tolist() == [2.0, 1.0] and batch.weights.tolist() == [0.5, 0.25] and batch.sampled.tolist() == [-0.5, -1.0]
    )
    assert (batch.tokens, batch.actions) == (6, 2)
    idle = make_batch([], [], torch.device("cpu"))
    assert (idle.tokens, idle.actions, idle.weights.tolist()) == (0, 0, [0.0])


def of_tokens(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of the actions' tokens."""
    found = score_tokens(model, model, batch.inputs, batch.places)
    assert found.log_probs is not None and found.entropy is not None
    return found.log_probs[0][batch.repeated], found.entropy[0][batch.repeated]


@pytest.mark.parametrize("branching", [False, True])
def test_the_loss_away_from_the_start_is_the_one_written_out(tokenizer, branching):
    """Clipped ratios, the KL divergence whose gradient is that of ratio times estimate, and the entropy, against plain autograd."""
    model, reference, plain = (tiny_llama(len(tokenizer), seed=seed) for seed in (5, 6, 5))
    for each in (model, reference):
        add_head(each, 1.2)
    actions = [False] * 3 + [True, True, False, True]
    rows = [
        Row([6, 7, 8, 20, 21, 22, 30], actions, [-1.0] * 3, [0.5, 0.5, -1.0]),
        Row([6, 7, 8, 29, 25], [*actions[:3], False, True], [-1.0], [0.3]),
    ]
    config = RlConfig(kl=0.1, entropy=0.2, loss="grpo", clip=0.2, clip_high=0.3)
    trees, weights = make_trees(rows, 1e6 * branching), [row_weight(row, "grpo", 2, 4, 512) for row in rows]
    assert len(trees) == 2 - branching
    batch = make_batch(trees, weights, torch.device("cpu"), masks_of(model, 512))
    with torch.no_grad():
        batch.reference = of_tokens(reference, batch)[0]
        batch.old = of_tokens(model, batch)[0] + torch.tensor([-0.5, 0.1, 0.4, 0.0])
    loss, sums = policy_loss(*of_tokens(model, batch), batch, config)
    loss.backward()
    total, number = torch.zeros(()), 0
    for row in rows:
        logprobs = (plain(input_ids=torch.tensor([row.ids])).logits[0] / 1.2).log_softmax(-1)
        terms = []
        for i in (i for i, is_action in enumerate(row.chosen) if is_action):
            logprob, advantage = logprobs[i - 1, row.ids[i]], float(batch.advantages[number])
            ratio, difference = (logprob - batch.old[number]).exp(), batch.reference[number] - logprob
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
            entropy = -(logprobs[i - 1].exp() * logprobs[i - 1]).sum()
            terms.append(-surrogate + 0.1 * ratio * (difference.exp() - difference - 1) - 0.2 * entropy)
            number += 1
        total = total + sum(terms) / len(terms) / 2
    total.backward()
    torch.testing.assert_close(loss, total)
    assert sums.tolist()[1:] == [1.0, 1.0]  # the third is below at a negative advantage, the first above at a positive one
    for (name, got), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, atol=2e-7, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_rewards_by_hand():
    made = episode([(1, 1), (1, 1), (1, 0)], [0.0, 0.25, 1.0], success=True, score=0.75)
    made.turns[1].valid, made.turns[0].well_formed = False, False
    made.stop_reason = StopReason.ENVIRONMENT
    shape = {"invalid_penalty": 0.1, "malformed_penalty": 0.2}
    assert outcome(made, RlConfig.model_validate(shape)) == Outcome((-0.2, 0.15, 1.0), ("start", "after 0", "after 1"))
    assert outcome(made, RlConfig(reward="success", reward_scale=10)).rewards == (0, 0, 10)
    assert outcome(made, RlConfig.model_validate({"reward": "score", "reward_scale": 2, **shape})).rewards == pytest.approx(
        (-0.2, -0.1, 1.5)
    )
    made.turns[1].reward = math.nan
    assert not outcome(made, RlConfig()).counted
    made.turns[1].reward, made.stop_reason = 0.0, StopReason.FAILURE
    assert not outcome(made, RlConfig()).counted
    assert outcome(Episode(TASK), RlConfig(reward="success", timeout_penalty=1.0)).rewards == ()
    made.stop_reason, timeout = StopReason.STEPS, RlConfig(reward="score", timeout_penalty=0.5)
    assert outcome(made, timeout).rewards == (0.0, 0.0, 0.25)
    made.stop_reason = StopReason.ENVIRONMENT
    assert outcome(made, timeout).rewards == (0.0, 0.0, 0.75)


def test_dynamic_sampling_asks_for_groups_that_earn_differently_and_not_for_other_penalties():
    """A failed group in which one was refused more often than another has a gradient, and yet is no mixed one."""

    def play(tasks, seed):
        played = [episode([(1, 0), (1, 0)], [0.0, 0.0], task=task) for task in tasks]
        played[0].turns[1].valid = False
        return played

    config = RlConfig(rounds=1, rollouts_per_task=2, tasks_per_round=1, invalid_penalty=0.1, dynamic_sampling=True)
    result = Rounds(TaskStream([TASK], 0), play, config, 1).next()
    assert (result.counts["zero_variance_groups"], result.counts["replaced_groups"]) == (4, 3)
    assert (result.counts["taken"], result.counts["without_gradient"]) == (1, 0) and any(any(row.advantages) for row in result.rows)
    told = figures_of(result.counts)
    assert (told["zero_variance_groups"], told["groups_without_gradient"], told["repeated_share"]) == (1.0, 0.0, 0.0)
    for made in result.groups[0].episodes:
        made.turns[1].observation = made.turns[0].observation
    assert [repeats(made) for made in result.groups[0].episodes] == [1, 1]


def test_half_the_rounds_change_in_half_the_time():
    config = RlConfig(rounds=100, decay_rounds=80, max_steps=20, first_max_steps=5, growth_rounds=11)
    assert config.shortened(50) == config.model_copy(update={"rounds": 50, "decay_rounds": 40, "growth_rounds": 6})
    assert config.shortened(1).decay_rounds == 1  # 0 would be no decay
    assert config.shortened(1).growth_rounds == 1 and RlConfig(rounds=10).shortened(3) == RlConfig(rounds=3)


def test_the_limit_of_steps_grows_to_its_end():
    config = RlConfig(max_steps=20, first_max_steps=5, growth_rounds=10)
    assert [config.steps_limit(done) for done in (0, 1, 2, 9, 10, 50)] == [5, 6, 8, 18, 20, 20]
    assert [RlConfig(max_steps=20).steps_limit(done) for done in (0, 50)] == [20, 20]
    for bad in ({"first_max_steps": 5}, {"first_max_steps": 21, "growth_rounds": 3}):
        with pytest.raises(ValueError, match="must be at most max_steps 20, with growth_rounds"):
            RlConfig.model_validate({"max_steps": 20, **bad})


def test_every_process_draws_every_task_once_a_pass():
    tasks = [Task("x", str(i), "k", "s") for i in range(10)]
    for world in (1, 2, 5):
        streams = [TaskStream(tasks, 3, rank, world) for rank in range(world)]
        for _ in range(3):
            drawn = [t.id for stream in streams for t in stream.draw(10 // world)]
            assert sorted(drawn) == [str(i) for i in range(10)]
    a, b = TaskStream(tasks, 3), TaskStream(tasks, 3)
    first = a.draw(25)
    b.drawn = 17
    assert b.draw(8) == first[17:]
    assert TaskStream(tasks, 4).draw(10) != first[:10]
    assert len({t.id for t in TaskStream(tasks[:2], 0).draw(5)}) == 2  # fewer tasks than a step has groups


class Scripted:
    """Groups whose episodes all fail, but for those of `good` tasks, where the first wins."""

    def __init__(self, good):
        self.good, self.asked = good, []

    def __call__(self, tasks, seed):
        self.asked.append((len(tasks), seed))
        first = set()
        played = []
        for task in tasks:
            won = task.id in self.good and task.id not in first
            first.add(task.id)
            played.append(episode([(1, 0)], [float(won)], task=task))
        return played


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=12).filter(any), st.integers(0, 99))
def test_a_pass_has_each_task_by_its_weight_up_to_one(weights, seed):
    n, share = len(weights), sum(weights) / len(weights)
    tasks = [Task("x", str(i), "k", "s", weight) for i, weight in enumerate(weights)]
    stream = TaskStream(tasks, seed)
    for _ in range(3):
        drawn = [task.id for task in stream.draw(n)]
        assert all(abs(drawn.count(task.id) - task.weight / share) < 1 + 1e-9 for task in tasks)
        assert all(task.weight > 0 or task.id not in drawn for task in tasks)
    resumed = TaskStream(tasks, seed)
    resumed.drawn = n + 1
    assert resumed.draw(5) == TaskStream(tasks, seed).draw(n + 6)[n + 1 :]
    shared = [TaskStream(tasks, seed, rank, 2) for rank in (0, 1)]
    assert [task for _ in range(n) for one in shared for task in one.draw(1)] == TaskStream(tasks, seed).draw(2 * n)


def test_over_passes_tasks_are_drawn_in_proportion_and_equal_weights_change_nothing():
    weights = [0.1, 0.2, 0.3, 0.9, 1.0, 0.0]
    tasks = [Task("x", str(i), "k", "s", weight) for i, weight in enumerate(weights)]
    drawn = Counter(task.id for task in TaskStream(tasks, 0).draw(6 * 2000))
    expected = 6 * 2000 * np.array(weights) / sum(weights)
    np.testing.assert_allclose([drawn[str(i)] for i in range(6)], expected, rtol=0.05)
    plain, equal = ([Task("x", str(i), "k", "s", weight) for i in range(9)] for weight in (1.0, 0.4))
    assert TaskStream(plain, 5).draw(40) == TaskStream(equal, 5).draw(40)


def test_weights_of_a_task_are_those_of_its_trajectories(tmp_path):
    environment = AlfworldEnvironment()
    [one, two] = environment.tasks("train", 2)
    routed = [RlTask(str(i), [], task.reference(), weight=w) for i, (task, w) in enumerate([(one, 0.2), (two, 0.5), (one, 0.6)])]
    found = as_tasks(routed, environment)
    assert [task.weight for task in found] == pytest.approx([0.4, 0.5]) and found == [one, two]
    write_jsonl(tmp_path / "rl.jsonl", [{"id": t.id, "prompt": [], "task": t.task, "weight": t.weight} for t in routed])
    assert [task.weight for task in read_tasks(tmp_path / "rl.jsonl", environment)] == pytest.approx([0.4, 0.5])
    write_jsonl(tmp_path / "bad.jsonl", [{"id": "a", "prompt": [], "task": one.reference(), "weight": -1}])
    with pytest.raises(DataError, match="'weight' is -1"):
        read_tasks(tmp_path / "bad.jsonl", environment)
    for options, words in (({"config": RlConfig(order="given")}, "leaves no order"), ({"refresh": lambda *_: None}, "no refresh")):
        with pytest.raises(ConfigError, match=words):
            train_rl("nowhere", None, environment, routed, out=tmp_path / "rl", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="all tasks have the weight 0"):
        train_rl("nowhere", None, environment, [replace(task, weight=0.0) for task in found], out=tmp_path / "rl")


@pytest.mark.parametrize("world", [1, 4])
def test_tasks_that_are_given_in_an_order_are_first_played_in_it(world):
    tasks = [Task("x", str(i), "k", "s") for i in range(8)]
    streams = [TaskStream(tasks, 3, rank, world, as_given=True) for rank in range(world)]
    drawn = [task for _ in range(16 // world) for stream in streams for task in stream.draw(1)]
    later = TaskStream(tasks, 3).draw(16)[8:]
    assert drawn == [*tasks, *later] and later != tasks
    resumed = TaskStream(tasks, 3, 0, world, as_given=True)
    resumed.drawn = 1
    assert resumed.draw(3) == TaskStream(tasks, 3, 0, world, as_given=True).draw(4)[1:]


def rounds(good, **options):
    config = RlConfig(rounds=1, rollouts_per_task=2, tasks_per_round=4, **options)
    tasks = [Task("x", str(i), "k", "s") for i in range(100)]
    return Rounds(TaskStream(tasks, 0), Scripted(good), config, 4)


def test_groups_of_equal_reward_are_counted_and_replaced_where_asked():
    order = [t.id for t in TaskStream([Task("x", str(i), "k", "s") for i in range(100)], 0).draw(16)]
    good = {order[1], order[4], order[5], order[9], order[15]}
    plain = rounds(good).next()
    assert (plain.counts["zero_variance_groups"], plain.counts["replaced_groups"], len(plain.groups)) == (3, 0, 4)
    full = rounds(good, dynamic_sampling=True)
    result = full.next()
    # Task 1 of the first four; three more wanted, at one of four: twelve, of which four are mixed.
    assert [g.episodes[0].task.id for g in result.groups] == [order[i] for i in (1, 4, 5, 9, 15)]
    assert (result.counts["zero_variance_groups"], result.counts["replaced_groups"], result.counts["taken"]) == (11, 11, 5)
    assert [n for n, _ in full.play.asked] == [8, 24]
    assert len({seed for _, seed in full.play.asked}) == 2
    assert full.state == {"drawn": 16, "played": 32, "count": 1, "tasks": None, "salt": []}
    often = rounds(set(order) - {order[2]}, dynamic_sampling=True)
    assert len(often.next().groups) == 5 and [n for n, _ in often.play.asked] == [8, 4]  # one missing, at three of four: two more
    limited = rounds({order[15]}, dynamic_sampling=True, dynamic_sampling_limit=2).next()
    assert (limited.counts["zero_variance_groups"], len(limited.groups), limited.counts["replaced_groups"]) == (8, 4, 4)


def test_what_is_no_number_or_failed_is_named_counted_and_survived(capsys):
    broken = [episode([(1, 0)], [r]) for r in (1.0, 0.0, math.nan, 0.0)]
    broken[3].stop_reason, broken[3].failure = StopReason.FAILURE, "the engine died"
    config = RlConfig(rounds=1, tasks_per_round=1, rollouts_per_task=4, advantage_scale="none")
    result = Rounds(TaskStream([TASK], 0), Given(broken), config, 1).next()
    assert [row.advantages for row in result.rows] == [[0.5], [-0.5], [0.0], [0.0]]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "task 't': an episode is not trained on (a reward is not finite: [nan])" in said
    assert figures_of(result.counts)["failed_episodes"] == 2


def test_a_refresh_that_gives_no_tasks_is_told():
    made = rounds(set())
    made._refresh = lambda count: []
    made.next()
    with pytest.raises(ConfigError, match="refresh: gave no tasks for round 2"):
        made.next()


def test_tasks_may_be_replaced_between_rounds_and_the_state_says_so():
    other = [Task("x", "new", "k", "s")]
    made = rounds(set())
    made._refresh = lambda count: other if count == 1 else None
    assert {g.episodes[0].task.id for g in made.next().groups} != {"new"}
    assert {g.episodes[0].task.id for g in made.next().groups} == {"new"}
    again = rounds(set())
    again.state = json.loads(json.dumps(made.state))
    assert {g.episodes[0].task.id for g in again.next().groups} == {"new"}


def test_tasks_that_stay_the_same_go_on_in_their_order():
    """Begun anew at each refresh, the stream would come to the last of many tasks never."""
    made, plain = rounds(set()), rounds(set())
    made._refresh = lambda count: [Task("x", str(i), "k", "s") for i in range(100)]
    for _ in range(5):
        assert [g.episodes[0].task for g in made.next().groups] == [g.episodes[0].task for g in plain.next().groups]
    other = [Task("x", str(i), "k", "s") for i in range(50)]
    made._refresh = lambda count: other
    drawn = {g.episodes[0].task.id for _ in range(12) for g in made.next().groups}
    assert len(drawn) == 48


def test_gigpo_learns_from_ways_of_different_length_to_the_same_return():
    ways = [episode([(1, 0)] * 2, [0.0, 1.0]), episode([(1, 0)] * 4, [0.0, 0.0, 0.0, 1.0])]
    for algorithm, wanted in (("grpo", False), ("gigpo", True)):
        config = RlConfig(algorithm=algorithm)  # pyright: ignore[reportArgumentType]
        assert has_gradient([outcome(e, config) for e in ways], config) is wanted
    rewards = [Outcome((0.1,) * 3), Outcome((0.3,))]  # equal but for rounding
    assert not has_gradient(rewards, RlConfig()) and sum(rewards[0].rewards) != rewards[1].total


def test_the_log_tells_of_all_that_was_played_and_not_of_the_groups_that_were_kept():
    result = rounds({TaskStream([Task("x", str(i), "k", "s") for i in range(100)], 0).draw(1)[0].id}, dynamic_sampling=True).next()
    told = figures_of(result.counts)
    assert told["episodes"] == 32 and told["success"] == 0.0 and told["reward"] == pytest.approx(1 / 32)


def test_processes_draw_numbers_of_their_own_and_share_the_batchs_spread():
    tasks = [Task("x", "only", "k", "s")]
    seeds = []
    for rank in range(2):
        play = Scripted({"only"})
        config = RlConfig(rounds=1, rollouts_per_task=2, tasks_per_round=2)
        Rounds(TaskStream(tasks, 0, rank, 2), play, config, 1).next()
        seeds.append(play.asked[0][1])
    assert len(set(seeds)) == 2
    groups = [[Outcome((1.0,)), Outcome((0.0,))], [Outcome((0.0,)), Outcome((-0.01,))]]
    together = advantages_of(groups, RlConfig(algorithm="gigpo"))

    def summed_by(index):
        """What the other process would add, worked out apart."""
        mine, other = (np.array([o.total for o in groups[i]]) for i in (index, 1 - index))
        calls = iter(([other.size, other.sum()], [np.square(other - np.concatenate([mine, other]).mean()).sum()]))
        return lambda values: [a + b for a, b in zip(values, next(calls, [0.0, 0.0]), strict=False)]

    for index in range(2):
        [alone] = grpo([groups[index]], "batch", summed_by(index))
        assert [a.tolist() for a in alone] == [pytest.approx(a.tolist()) for a in together[index]]


def run_tiny(out: Path, **options):
    """The shipped model on tiny rooms."""
    environment = AlfworldEnvironment("tiny")
    model = load_model("models/alfworld-tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {
        "rounds": 2,
        "tasks_per_round": 2,
        "rollouts_per_task": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "temperature": 1.5,
    }
    settings |= {"context_length": 512, **options}
    summary = train_rl(
        model,
        load_tokenizer("models/alfworld-tiny"),
        environment,
        environment.tasks("train", 3),
        RlConfig.model_validate(settings),
        out=out,
        workers=1,
    )
    return model, before, summary


@pytest.mark.parametrize(
    "options",
    [
        {"invalid_penalty": 0.5, "kl": 0.1},
        {"algorithm": "gigpo", "invalid_penalty": 0.5, "prompt": PromptTemplate(history=2), "micro_batch_tokens": 600},
        {"invalid_penalty": 0.5, "updates_per_round": 2, "epochs_per_round": 2, "lora_rank": 4},
        {"invalid_penalty": 0.5, "bf16": True, "activation_checkpointing": True},
        {"invalid_penalty": 0.5, "dynamic_sampling": True, "evaluate_every": 1, "evaluate_tasks": 6},
    ],
)
def test_rl_plays_and_learns_on_the_real_environment(tmp_path, options):
    _, before, summary = run_tiny(tmp_path / "out", **options)
    replaced = summary.counts["replaced_groups"]
    assert summary.steps == 2 * options.get("updates_per_round", 1) * options.get("epochs_per_round", 1)
    more = summary.counts["episodes"] - 16 - 4 * replaced  # of mixed groups beyond those asked for
    assert more >= 0 and more % 4 == 0 and (options.get("dynamic_sampling") or more == 0)
    assert 16 <= summary.usage.environment_steps <= 64 + 16 * replaced
    assert len(summary.history) == summary.steps
    assert all(
        0 <= row["invalid_share"] <= 1 and 0 <= row["zero_variance_groups"] <= 1 for row in summary.history if "success" in row
    )
    trained = load_model(str(tmp_path / "out"))
    assert any(not torch.equal(before[name], value) for name, value in trained.state_dict().items())
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    steps = [row for row in log if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, summary.steps + 1))
    for key in ("reward", "success", "rollout_seconds", "update_seconds", "entropy", "grad_norm", "tokens", "tokens_per_second"):
        assert math.isfinite(steps[0][key]), key
    if "kl" in options:
        assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-6) and steps[1]["kl"] > 1e-6
    if "evaluate_every" in options:
        evaluated = [row for row in log if "evaluation/success" in row]
        assert [row["step"] for row in evaluated] == [0, 1, 2]
        assert summary.evaluations[0]["step"] == 0 and len(summary.evaluations) == 3
    # The same command again says what was done and does nothing.
    _, _, again = run_tiny(tmp_path / "out", **options)
    assert again.reused and list(again.history) == list(summary.history)
    with pytest.raises(FolderInUseError, match=r"config\.learning_rate: .* → 0\.002"):
        run_tiny(tmp_path / "out", **{**options, "learning_rate": 2e-3})


@pytest.mark.parametrize("algorithm", ["grpo", "gigpo"])
def test_a_random_model_learns_what_is_rewarded(tokenizer, tmp_path, algorithm):
    """docs/training.md in miniature: what is said earns by its length, up to 1 for 30 characters."""
    environment, config = (
        BrokenGames(by_length=True),
        {"rounds": 12, "tasks_per_round": 8, "rollouts_per_task": 8, "max_steps": 2, "max_action_tokens": 3},
    )
    config |= {"learning_rate": 3e-3, "algorithm": algorithm, "loss": "grpo", "context_length": 128}
    summary = train_rl(
        tiny_qwen3(len(tokenizer)),
        tokenizer,
        environment,
        environment.tasks("train", 8),
        RlConfig.model_validate(config),
        out=tmp_path / "out",
        workers=1,
    )
    rewards = [row["reward"] for row in summary.history]  # of two actions
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.08  # four standard errors


def test_a_training_that_was_cut_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """Cut after its second checkpoint by an error; a kill is tested through the command line."""
    options = {"rounds": 4, "save_every": 1, "invalid_penalty": 0.3, "kl": 0.05, "algorithm": "gigpo"}
    whole, _, first = run_tiny(tmp_path / "whole", **options)
    play, calls = Rounds.next, []

    def cut(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return play(self)

    monkeypatch.setattr(Rounds, "next", cut)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "cut", **options)
    monkeypatch.setattr(Rounds, "next", play)
    resumed, _, second = run_tiny(tmp_path / "cut", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert first.counts["episodes"] == second.counts["episodes"]
    timeless = ["loss", "reward", "success", "grad_norm", "kl"]
    assert [[row[k] for k in timeless] for row in first.history] == [[row[k] for k in timeless] for row in second.history]
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_an_environment_that_dies_is_survived(tokenizer, tmp_path, capfd):
    """A model that never says anything sensible plays an environment of which one task kills every worker."""
    environment = BrokenGames(str(tmp_path))
    tasks = [Task("broken", name, "k", "train") for name in ("train/1", "fatal", "corrupt")]
    config = RlConfig(rounds=1, tasks_per_round=3, rollouts_per_task=2, max_steps=2, max_action_tokens=3, invalid_penalty=0.1)
    config = config.model_copy(update={"context_length": 256})
    summary = train_rl(tiny_qwen3(len(tokenizer)), tokenizer, environment, tasks, config, out=tmp_path / "out", workers=1)
    assert summary.counts["failed_episodes"] == 4 and summary.counts["episodes"] == 6
    said = capfd.readouterr().err
    assert "task 'corrupt': an episode is not trained on" in said and "not a game" in said


def test_settings_that_cannot_be_met_are_refused_before_training(tokenizer, tmp_path, monkeypatch):
    environment = AlfworldEnvironment("tiny")
    tasks = environment.tasks("train", 1)

    def train(tasks=tasks, **options):
        config = RlConfig(**{"context_length": 512, **options})
        train_rl(tiny_qwen3(len(tokenizer)), tokenizer, environment, tasks, config, out=tmp_path / "x")

    with pytest.raises(ConfigError, match="no tasks to train on"):
        train([])
    with pytest.raises(ConfigError, match="do not fit into a context of 40"):
        train(context_length=40)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        train(vllm="colocate")
    with pytest.raises(ConfigError, match="leaves no room"):
        train(max_action_tokens=512)
    with pytest.raises(ValueError, match="lora_dropout"):
        RlConfig(lora_rank=4, lora_dropout=0.1)
    with pytest.raises(ValueError, match="updates_per_round 9: more than"):
        RlConfig(tasks_per_round=2, rollouts_per_task=4, updates_per_round=9)
    assert not (tmp_path / "x" / "config.json").exists()
    with pytest.raises(ConfigError, match="updates_per_round 5: each of 2 processes plays 4 episodes"):
        renderer = Renderer(tokenizer, 512)
        check_rl(RlConfig(tasks_per_round=2, rollouts_per_task=4, updates_per_round=5), 2, tiny_qwen3(len(tokenizer)), renderer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="a sharded model cannot play"):
        train()
    with pytest.raises(ConfigError, match="version 1 of FSDP does not shard the reference model"):
        train(vllm="colocate", kl=0.1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stop_when": ("drift",)}, "stop_when drift: is never raised without kl"),
        ({"stop_when": ("timeouts", "greedy-gap")}, "stop_when greedy-gap: is never raised without evaluate_sampled"),
        ({"stop_when": ("clipping",)}, "stop_when clipping: is never raised without a second update or epoch per round"),
        ({"growth_rounds": 5}, "growth_rounds 5: needs first_max_steps"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        RlConfig.model_validate(settings)


def test_alarms_that_can_be_raised_may_end_a_training():
    every = get_args(AlarmName)
    able = {"kl": 0.1, "evaluate_every": 1, "evaluate_sampled": True, "updates_per_round": 2}
    assert RlConfig.model_validate({**able, "stop_when": every}).stop_when == every


def test_a_setting_that_is_refused_leaves_the_folder_to_the_corrected_one(tmp_path):
    short = {"rounds": 1, "max_steps": 1}
    with pytest.raises(ConfigError, match="do not fit into a context of 40"):
        run_tiny(tmp_path / "out", context_length=40, **short)
    with pytest.raises(ValueError, match="no module 'nope'"):
        run_tiny(tmp_path / "out", lora_rank=2, lora_targets=("nope",), **short)
    _, _, summary = run_tiny(tmp_path / "out", invalid_penalty=0.5, **short)
    assert summary.counts["rounds"] == 1
    with pytest.raises(FolderInUseError, match=r"config\.context_length: 512 → 500"):
        run_tiny(tmp_path / "out", invalid_penalty=0.5, context_length=500, **short)


def test_more_evaluation_tasks_than_there_are_are_named(tokenizer, tmp_path):
    environment = BrokenGames(str(tmp_path))
    config = RlConfig(rounds=1, context_length=256, max_action_tokens=2, evaluate_every=1, evaluate_tasks=5000)
    with pytest.raises(ConfigError, match="evaluate_tasks 5000: split"):
        tasks = environment.tasks("train", 2)
        train_rl(tiny_qwen3(len(tokenizer)), tokenizer, environment, tasks, config, out=tmp_path / "out", workers=1)


def test_what_is_random_in_training_alone_is_turned_off(tokenizer):
    """Attention's dropout is a number beside it, a router's jitter another; dropout layers are modules."""
    model = tiny_qwen3(len(tokenizer))
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.lm_head = torch.nn.Sequential(torch.nn.Dropout(0.5), model.lm_head)
    ids = torch.tensor([[3, 5, 7, 9, 11, 13]])
    expected = model.eval()(input_ids=ids).logits
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, expected)
    _turn_off_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_routers_jitter_is_turned_off(tokenizer):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        router_jitter_noise=0.5,
    )
    model, ids = MixtralForCausalLM(config), torch.tensor([[3, 5, 7, 9, 11, 13]])
    expected = model.eval()(input_ids=ids).logits
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, expected)
    _turn_off_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_mask_that_is_called_jitter_stays():
    module = torch.nn.Linear(2, 2)
    vars(module)["router_jitter_noise"] = 0.01  # of PhiMoE, whose experts' weights hang on it in any mode
    _turn_off_dropout(module)
    assert module.router_jitter_noise == 0.01


def test_a_diverged_training_stops_at_once_and_leaves_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"diverged|not finite"):
        run_tiny(tmp_path / "out", learning_rate=1e38, max_grad_norm=1e30, invalid_penalty=0.5, rounds=4)
    assert not (tmp_path / "out" / "config.json").exists()


def test_tasks_are_read_once_and_bad_lines_are_named(tmp_path):
    environment = AlfworldEnvironment("tiny")
    lines = [{"id": "a", "prompt": [], "task": t.reference()} for t in environment.tasks("train", 2)]
    path = tmp_path / "rl.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    assert [t.id for t in read_tasks(path, environment)] == [line["task"]["id"] for line in lines]
    for bad in ("{", "[]", '{"id": 1}', '{"task": {"env": "webshop", "id": "3"}}'):
        path.write_text(json.dumps(lines[0]) + "\n" + bad + "\n")
        with pytest.raises(DataError, match=r"rl\.jsonl:2: no task"):
            read_tasks(path, environment)
    for weight in (-1, "heavy"):
        path.write_text(json.dumps(lines[0]) + "\n" + json.dumps({**lines[1], "weight": weight}) + "\n")
        with pytest.raises(DataError, match=r"rl\.jsonl:2: 'weight' is"):
            read_tasks(path, environment)
    for missing, told in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "is a folder; give the rl.jsonl")):
        with pytest.raises(MissingFileError, match=told):
            read_tasks(missing, environment)
    path.write_text(json.dumps({"id": "a", "messages": [], "task": lines[0]["task"]}) + "\n")
    with pytest.raises(DataError, match=r"rl\.jsonl:1: is a trajectory of the SFT side"):
        read_tasks(path, environment)


def test_the_tasks_of_a_route_are_the_environments():
    environment = AlfworldEnvironment("tiny")
    first, second = environment.tasks("train", 2)
    routed = [RlTask("a", [], first.reference()), RlTask("b", [], first.reference()), second]
    assert as_tasks(routed, environment) == [first, second]
    with pytest.raises(ConfigError, match="expected env 'alfworld'"):
        as_tasks([RlTask("a", [], {})], environment)


def test_a_training_is_extended_from_a_kept_checkpoint_to_the_same_weights(tmp_path):
    """Settings on which no weight depends may differ; more rounds go on, where there is something to go on from."""
    whole, _, _ = run_tiny(tmp_path / "whole", rounds=3, invalid_penalty=0.3)
    run_tiny(tmp_path / "part", rounds=2, invalid_penalty=0.3, save_every=5, keep_checkpoints=True)
    more = {"rounds": 3, "invalid_penalty": 0.3, "save_every": 2, "micro_batch_tokens": 4096, "in_flight": 64}
    extended, _, summary = run_tiny(tmp_path / "part", **more)
    assert (summary.resumed_at, summary.steps, summary.reused) == (2, 3, False)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, extended.state_dict()[name], atol=1e-6), name
    with pytest.raises(FolderInUseError, match="has been trained for 3 steps, which are more than 2"):
        run_tiny(tmp_path / "part", rounds=2, invalid_penalty=0.3)
    with pytest.raises(FolderInUseError, match="has finished after 3 steps and kept no checkpoint to go on from"):
        run_tiny(tmp_path / "whole", rounds=4, invalid_penalty=0.3)
    assert run_tiny(tmp_path / "whole", rounds=3, invalid_penalty=0.3)[2].reused
    with pytest.raises(FolderInUseError, match=r"config\.invalid_penalty: 0\.3 → 0\.2"):
        run_tiny(tmp_path / "whole", rounds=3, invalid_penalty=0.2)


def test_steps_grow_and_the_learning_rate_falls_by_the_rounds_that_were_played(tmp_path):
    settings = {"rounds": 4, "first_max_steps": 1, "growth_rounds": 3, "decay_rounds": 3, "decay_to": 0.25, "updates_per_round": 2}
    _, _, summary = run_tiny(tmp_path / "out", invalid_penalty=0.3, **settings)
    rounds = [row for row in summary.history if "steps_per_episode" in row]
    assert rounds[0]["steps_per_episode"] == 1 and all(row["steps_per_episode"] <= 1 + n for n, row in enumerate(rounds))
    rates = [row["learning_rate"] / 1e-3 for row in summary.history]
    assert rates[0] == 1 and rates == sorted(rates, reverse=True)
    assert rates[3] == pytest.approx(0.25 + 0.75 * 0.5) and rates[6:] == [pytest.approx(0.25)] * 2


def test_the_best_weights_are_those_of_the_best_evaluation_also_after_a_cut(tmp_path, monkeypatch):
    told = iter([(0.2, 0.0), (0.5, 0.1), (0.5, 0.3), (0.4, 0.9), (0.5, 0.3)] * 2)
    monkeypatch.setattr(RlTraining, "_play_evaluation", lambda self, config: next(told))
    options = {"rounds": 4, "invalid_penalty": 0.3, "evaluate_every": 1, "save_every": 1}
    kept, _, summary = run_tiny(tmp_path / "best", keep_best=True, **options)
    assert [summary.counts[name] for name in ("best_success", "best_score", "best_round", "rounds")] == [0.5, 0.3, 2, 4]
    second, _, _ = run_tiny(tmp_path / "two", rounds=2, invalid_penalty=0.3)
    for name, value in second.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]), name
    assert all(
        torch.equal(value, second.state_dict()[name]) for name, value in load_model(str(tmp_path / "best")).state_dict().items()
    )
    played, play = [], Rounds.next

    def cut(self):
        played.append(self.count)
        if len(played) == 4:  # the third round, whose checkpoint knows what is the best, has ended
            raise KeyboardInterrupt
        return play(self)

    monkeypatch.setattr(Rounds, "next", cut)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "cut", keep_best=True, **options)
    resumed, _, _ = run_tiny(tmp_path / "cut", keep_best=True, **options)
    for name, value in second.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_the_last_round_may_be_the_best(tmp_path, monkeypatch):
    told = iter([(0.2, 0.0), (0.3, 0.0), (0.9, 0.0)])
    monkeypatch.setattr(RlTraining, "_play_evaluation", lambda self, config: next(told))
    _, _, summary = run_tiny(tmp_path / "out", rounds=3, evaluate_every=2, keep_best=True, invalid_penalty=0.3, max_steps=1)
    assert (summary.counts["best_round"], len(summary.evaluations)) == (3, 3)
    assert [RlConfig(rounds=n, evaluate_every=2, keep_best=True).evaluations for n in (1, 2, 3)] == [2, 2, 3]
    assert [RlConfig(rounds=n, evaluate_every=2).evaluations for n in (1, 2, 3)] == [1, 2, 2] and RlConfig().evaluations == 0


def test_where_an_alarm_ends_the_training_the_last_round_may_be_the_best_too(tmp_path, monkeypatch):
    told = iter([(0.2, 0.0), (0.3, 0.0), (0.9, 0.0)])
    monkeypatch.setattr(RlTraining, "_play_evaluation", lambda self, config: next(told))

    def stopped(self):
        self.stopped = "timeouts" if self.rounds.count == 3 else ""

    monkeypatch.setattr(RlTraining, "_stop_where_asked", stopped)
    _, _, summary = run_tiny(tmp_path / "out", rounds=9, evaluate_every=2, keep_best=True, invalid_penalty=0.3, max_steps=1)
    assert (summary.counts["best_round"], summary.counts["rounds"], summary.stopped) == (3, 3, "timeouts")


def test_the_best_weights_of_rounds_that_a_kill_undid_are_gone(tmp_path, monkeypatch):
    """Killed after round 3, it is asked for two rounds, and goes on from the checkpoint of the second, when the first was the best."""
    told = iter([(0.2, 0.0), (0.5, 0.0), (0.3, 0.0), (0.9, 0.0)])
    monkeypatch.setattr(RlTraining, "_play_evaluation", lambda self, config: next(told))
    options = {"invalid_penalty": 0.3, "evaluate_every": 1, "save_every": 2, "keep_best": True}

    def killed(self, figures):
        if self.rounds.count == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RlTraining, "_examine", killed)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "cut", rounds=4, **options)
    resumed, _, summary = run_tiny(tmp_path / "cut", rounds=2, **options)
    assert [summary.counts[name] for name in ("best_success", "best_round", "rounds")] == [0.5, 1, 2]
    first, _, _ = run_tiny(tmp_path / "one", rounds=1, invalid_penalty=0.3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_better_weights_leave_those_of_a_checkpoint_as_they_are(tmp_path):
    """Also where both are names of one file, as after going on from the checkpoint that knows the best so far."""
    checkpoint = folder.begin_checkpoint(tmp_path)
    folder.keep_best(tmp_path, 0, {"0": torch.zeros(3)})
    folder.copy_best(tmp_path, 0, checkpoint)
    folder.restore_best(tmp_path, 0, checkpoint)
    folder.keep_best(tmp_path, 0, {"0": torch.ones(3)})
    found = [load_file(path)["0"].sum() for path in (folder.best_weights(tmp_path, 0), checkpoint / "best-0.safetensors")]
    assert found == [3, 0]
    folder.restore_best(tmp_path, 0, checkpoint)
    assert load_file(folder.best_weights(tmp_path, 0))["0"].sum() == 0


WITHOUT_EFFECT = [
    ({"decay_to": 0.5}, "decay_to 0.5 has no effect without decay_rounds"),
    ({"dynamic_sampling_limit": 9.0}, "dynamic_sampling_limit 9.0 has no effect without dynamic_sampling"),
    ({"gamma": 0.5}, "gamma 0.5 has no effect without algorithm gigpo"),
    ({"step_weight": 3.0}, "step_weight 3.0 has no effect without algorithm gigpo"),
    ({"clip": 0.1}, "clip 0.1 has no effect without a second update or epoch per round: in the first every ratio is 1"),
    ({"clip_high": 0.28}, "clip_high 0.28 has no effect without a second update or epoch per round: in the first every ratio is 1"),
    ({"evaluate_split": "nosuch"}, "evaluate_split nosuch has no effect without evaluate_every"),
    ({"evaluate_tasks": 7}, "evaluate_tasks 7 has no effect without evaluate_every"),
    ({"vllm_url": "http://x"}, "vllm_url http://x has no effect without vllm server"),
    ({"vllm_memory": 0.3}, "vllm_memory 0.3 has no effect without vllm colocate"),
    ({"warmup_steps": 30}, "warmup_steps 30: the 30 steps of this training end before the learning rate has risen"),
    ({"warmup_steps": 9, "decay_rounds": 9}, "decay_rounds 9 end within the 9 warmup_steps, after which the rate drops at once"),
    ({"rounds": 9, "stop_when": ("refused",)}, "stop_when refused has no effect in fewer than 10 rounds"),
    ({"rounds": 19, "stop_when": ("timeouts",)}, "stop_when timeouts has no effect in fewer than 20 rounds"),
]
IN_FORCE = [
    {},
    {"decay_to": 0.5, "decay_rounds": 9, "warmup_steps": 8},
    {"dynamic_sampling_limit": 9.0, "dynamic_sampling": True},
    {"algorithm": "gigpo", "gamma": 0.5, "step_weight": 3.0},
    {"clip": 0.1, "clip_high": 0.28, "updates_per_round": 2},
    {"clip": 0.1, "clip_high": 0.28, "vllm": "server", "vllm_url": "http://x"},
    {"evaluate_every": 2, "evaluate_tasks": 7, "evaluate_split": "train"},
    {"vllm": "colocate", "vllm_memory": 0.3},
    {"warmup_steps": 29, "stop_when": ("refused", "timeouts", "collapse")},
]


@pytest.mark.parametrize(("given", "told"), WITHOUT_EFFECT)
def test_settings_without_effect_are_told(given, told):
    assert RlConfig(**{"rounds": 30, **given}).without_effect == [told]


@pytest.mark.parametrize("given", IN_FORCE)
def test_settings_in_force_are_not(given):
    assert RlConfig(**{"rounds": 30, **given}).without_effect == []


def test_what_has_no_effect_is_said_before_training_and_in_the_summary(tokenizer, tmp_path, capfd):
    environment = BrokenGames(str(tmp_path))
    settings = {"rounds": 1, "tasks_per_round": 1, "rollouts_per_task": 2, "max_steps": 1, "max_action_tokens": 2, "gamma": 0.5}
    config, model = RlConfig(**settings, context_length=256), tiny_qwen3(len(tokenizer))
    summary = train_rl(model, tokenizer, environment, environment.tasks("train", 1), config, out=tmp_path / "out", workers=1)
    assert summary.warnings[0] == "gamma 0.5 has no effect without algorithm gigpo"
    assert capfd.readouterr().err.count("warning: gamma 0.5 has no effect") == 1


def test_an_alarm_that_was_asked_for_ends_the_training_and_counts_as_its_end(tokenizer, tmp_path, capfd):
    environment = BrokenGames(str(tmp_path))
    settings = {"rounds": 30, "tasks_per_round": 1, "rollouts_per_task": 2, "max_steps": 1, "max_action_tokens": 2}

    def train(**more):
        config = RlConfig.model_validate({**settings, "context_length": 256, **more})
        tasks, model = environment.tasks("train", 2), tiny_qwen3(len(tokenizer))
        return train_rl(model, tokenizer, environment, tasks, config, out=tmp_path / "out", workers=1)

    summary = train(stop_when=("timeouts", "no-gradient"))
    assert (summary.stopped, summary.counts["rounds"], summary.steps) == ("no-gradient", 10, 10)
    assert "round 10: no-gradient: 100% of the groups have no gradient of the reward; play more" in capfd.readouterr().err
    assert any(told.startswith("raised in round 10 and still true, no-gradient") for told in summary.warnings)
    again = train(stop_when=("no-gradient",))
    assert again.reused and again.stopped == "no-gradient"
    with pytest.raises(FolderInUseError, match="has finished after 10 steps and kept no checkpoint to go on from"):
        train()


def test_an_alarm_that_is_asked_for_after_it_was_raised_ends_what_goes_on(tokenizer, tmp_path, monkeypatch):
    environment = BrokenGames(str(tmp_path))
    settings = {"rounds": 14, "tasks_per_round": 1, "rollouts_per_task": 2, "max_steps": 1, "max_action_tokens": 2, "save_every": 1}

    def train(**more):
        config = RlConfig.model_validate({**settings, "context_length": 256, **more})
        tasks, model = environment.tasks("train", 2), tiny_qwen3(len(tokenizer))
        return train_rl(model, tokenizer, environment, tasks, config, out=tmp_path / "out", workers=1)

    play = Rounds.next

    def cut(self):
        if self.count == 12:
            raise KeyboardInterrupt
        return play(self)

    with monkeypatch.context() as patched:
        patched.setattr(Rounds, "next", cut)
        with pytest.raises(KeyboardInterrupt):
            train()
    stopped = train(stop_when=("no-gradient",), keep_checkpoints=True)
    assert (stopped.stopped, stopped.counts["rounds"]) == ("no-gradient", 12)
    assert train(keep_checkpoints=True).counts["rounds"] == 14


def test_rounds_without_a_gradient_are_said_and_have_no_entropy(tokenizer, tmp_path, capfd):
    """Nobody ever succeeds: nothing is learnt, and nothing pretends so."""
    environment = BrokenGames(str(tmp_path))
    config = RlConfig(rounds=2, tasks_per_round=2, rollouts_per_task=2, max_steps=2, max_action_tokens=3, context_length=256)
    model = tiny_qwen3(len(tokenizer))
    summary = train_rl(model, tokenizer, environment, environment.tasks("train", 2), config, out=tmp_path / "out", workers=1)
    assert summary.counts["groups"] == summary.counts["zero_variance_groups"] == 4
    assert summary.counts["rounds_without_gradient"] == 2 and summary.counts["moved_share"] == 0
    assert not any("entropy" in row or "clipped_low" in row for row in summary.history)
    told = "\n".join(summary.warnings)
    assert "2 of 2 rounds had no gradient of the reward" in told and "no weight has changed" in told
    assert told.splitlines()[0] in capfd.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"] == list(summary.warnings)


def test_an_environment_with_other_options_is_another_training(tokenizer, tmp_path):
    def train(environment):
        config = RlConfig(rounds=1, tasks_per_round=1, rollouts_per_task=2, max_steps=2, max_action_tokens=3, context_length=256)
        tasks = [Task("broken", "train/1", "k", "train")]
        return train_rl(tiny_qwen3(len(tokenizer)), tokenizer, environment, tasks, config, out=tmp_path / "out", workers=1)

    train(BrokenGames(str(tmp_path)))
    with pytest.raises(FolderInUseError, match=r"environment\.folder: .* → "):
        train(BrokenGames(str(tmp_path / "elsewhere")))


def test_a_model_that_plays_with_another_prompt_than_it_was_trained_with_is_told_apart(tmp_path, cli):
    run_tiny(tmp_path / "rl", rounds=1)
    assert other_prompt(tmp_path / "rl", PromptTemplate()) == ""
    assert "history: null → 2" in other_prompt(tmp_path / "rl", PromptTemplate(history=2))
    assert other_prompt("models/alfworld-tiny", PromptTemplate(history=2)) == ""
    play = [
        "--env-option",
        "difficulty=tiny",
        "--count",
        1,
        "--split",
        "seen",
        "--max-steps",
        1,
        "--workers",
        1,
        "--context-length",
        512,
    ]
    code, out, _ = cli("evaluate", "--model", tmp_path / "rl", *play, "--history", 2, "--out", tmp_path / "e")
    assert code == 0 and "trained with another prompt than it plays with here (history: null → 2)" in out
    assert "another prompt" in (tmp_path / "e" / "summary.json").read_text()
