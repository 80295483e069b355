"""SFT and RL through TRL: which tokens are learnt, on models of a few thousand parameters."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.protocol import Task
from gradprism.errors import ConfigError, DataError, MissingFileError, ModelError
from gradprism.models import load_model
from gradprism.rollouts.episodes import Episode, PlayConfig, PlayStatistics
from gradprism.training import rl
from gradprism.training.rl import RlConfig, read_tasks, shaped_reward, train_rl
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.tiny import tiny_qwen3, tiny_tokenizer


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


class FixedRollouts:
    """Hands TRL the same episodes whatever it asks, with rewards that differ within the group."""

    def __init__(self, episodes: list[Episode], rollouts: int) -> None:
        self.made, self.rollouts = episodes, rollouts
        self.player = SimpleNamespace(config=PlayConfig(), statistics=PlayStatistics())

    def __call__(self, prompts, trainer):
        return {
            "prompt_ids": [e.prompt_ids for e in self.made],
            "completion_ids": [e.completion_ids for e in self.made],
            "logprobs": [e.logprobs for e in self.made],
            "env_mask": [e.action_mask for e in self.made],
            "episode_reward": [float(i % self.rollouts) for i in range(len(self.made))],
        }


def learnt_tokens(tokenizer, episodes: list[Episode], out: Path) -> list[list[int]]:
    """For each episode, which completion tokens' predictions receive a gradient in one step, padded, sorted (TRL shuffles episodes).

    The last norm's output at a position is all that the prediction of the next token depends on, and no other position reads it.
    """
    model = tiny_qwen3(len(tokenizer), seed=5)
    config = RlConfig(steps=1, groups=1, rollouts=4, micro_batch=4, learning_rate=1e-3)
    gradients: list[torch.Tensor] = []

    def watch(module, args, output):
        if output.requires_grad:
            output.register_hook(gradients.append)

    model.model.norm.register_forward_hook(watch)
    trainer = rl.build_trainer(model, Renderer(tokenizer, 512), [Task("x", "t", "k", "s")], FixedRollouts(episodes, 4), config, out)
    trainer.train()
    [gradient] = gradients
    width = max(len(e.completion_ids) for e in episodes)
    return sorted((gradient.abs().sum(-1) > 0)[:, -width - 1 : -1].int().tolist())


def test_rl_never_learns_environment_tokens(tokenizer, tmp_path):
    def episodes(environment_token: int) -> list[Episode]:
        made = []
        for index in range(4):
            mask = [1, 1, 0, 0, 0, 1, 1, 1, 0, 1][: 6 + index]
            ids = [environment_token + i if not chosen else 20 + i + index for i, chosen in enumerate(mask)]
            made.append(
                Episode(
                    Task("x", "t", "k", "s"), [6, 7, 8 + index], completion_ids=ids, action_mask=mask, logprobs=[-1.0] * len(ids)
                )
            )
        return made

    expected = sorted(e.action_mask + [0] * (9 - len(e.action_mask)) for e in episodes(30))
    assert learnt_tokens(tokenizer, episodes(30), tmp_path / "a") == expected
    assert learnt_tokens(tokenizer, episodes(50), tmp_path / "b") == expected


def test_rl_plays_and_learns_on_the_real_environment(tmp_path):
    """A few steps end to end: episodes are played, every group has its size, and weights move."""
    environment = AlfworldEnvironment("tiny")
    tasks = environment.tasks("train", 3)
    model = load_model("models/alfworld-tiny")  # one that succeeds now and then, so that rewards differ
    renderer = Renderer(load_tokenizer("models/alfworld-tiny"), 512)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = RlConfig(
        steps=2, groups=2, rollouts=4, micro_batch=4, max_steps=4, learning_rate=1e-3, invalid_penalty=0.5, kl=0.1, temperature=1.5
    )
    summary = train_rl(model, renderer, environment, tasks, config, tmp_path / "out", context_length=512, workers=1)
    assert summary["episodes"] == 16
    assert 16 <= summary["environment_steps"] <= 64
    assert len(summary["history"]) == 2
    assert all(0 <= row["invalid_share"] <= 1 and 0 <= row["equal_groups"] <= 1 for row in summary["history"])
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert load_model(str(tmp_path / "out")).num_parameters() == model.num_parameters()


def test_reward_shaping_by_hand():
    episode = Episode(Task("x", "t", "k", "s"), [], reward=1.0, valid=[True, False, True, False])
    assert shaped_reward(episode, RlConfig(invalid_penalty=0.1)) == pytest.approx(0.8)
    assert shaped_reward(episode, RlConfig()) == 1.0


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
    with pytest.raises(MissingFileError):
        read_tasks(tmp_path / "none.jsonl", environment)


def test_rl_settings_that_cannot_be_met_are_refused(tokenizer, tmp_path):
    renderer, environment = Renderer(tokenizer, 512), AlfworldEnvironment("tiny")
    with pytest.raises(ConfigError, match="no tasks to train on"):
        train_rl(tiny_qwen3(len(tokenizer)), renderer, environment, [], RlConfig(), tmp_path, context_length=512)
    with pytest.raises(ValueError, match="must divide"):
        rl.build_trainer(
            tiny_qwen3(len(tokenizer)),
            renderer,
            environment.tasks("train", 1),
            FixedRollouts([], 2),
            RlConfig(groups=3, rollouts=2, micro_batch=4),
            tmp_path,
        )


def test_a_checkpoint_that_lacks_weights_or_is_torn_is_refused(tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_qwen3(len(tokenizer)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 3 of the model's weights, among them model\.layers\.1\.mlp"):
        load_model(str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="device 'abacus'"):
        load_model("models/alfworld-tiny", device="abacus")
