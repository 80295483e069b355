"""From what the environment said to the rewards that RL learns from."""

import math

from gradprism.rollouts.episode import Episode, StopReason
from gradprism.training.advantages.outcome import Outcome
from gradprism.training.rl_config import RlConfig


def outcome(episode: Episode, config: RlConfig) -> Outcome:
    """The shaped reward of every step.

    `config.reward` says what is rewarded: the environment's own rewards as they come, success, or the final score, the latter two at
    the last step. It is multiplied by `reward_scale`; refused and malformed actions cost their penalties at their own steps,
    running out of steps its own at the last. An episode whose engine failed, or whose reward is not finite, does not count.
    """
    earned = [turn.reward for turn in episode.turns]
    if config.reward != "environment" and earned:
        earned = [0.0] * (len(earned) - 1) + [float(episode.success) if config.reward == "success" else episode.score]
    rewards = tuple(
        config.reward_scale * reward - config.invalid_penalty * (not turn.valid) - config.malformed_penalty * (not turn.well_formed)
        for reward, turn in zip(earned, episode.turns, strict=True)
    )
    if rewards and episode.stop_reason == StopReason.STEPS:
        rewards = (*rewards[:-1], rewards[-1] - config.timeout_penalty)
    counted = episode.stop_reason != StopReason.FAILURE and all(map(math.isfinite, rewards))
    return Outcome(rewards, tuple(turn.observation for turn in episode.turns), counted)
