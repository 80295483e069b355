"""From what the environment said to the rewards that RL learns from."""

import math

from gradprism.rollouts.episodes import Episode
from gradprism.training.advantages.outcome import Outcome
from gradprism.training.rl_config import RlConfig


def outcome(episode: Episode, config: RlConfig) -> Outcome:
    """The shaped reward of every step.

    `config.reward` says what is rewarded: the environment's own rewards as they come, success, or the final score, the latter two at
    the last step. It is multiplied by `reward_scale`; refused and malformed actions cost their penalties at their own steps. An
    episode whose engine failed, or whose reward is not finite, does not count.
    """
    if config.reward == "environment":
        earned = list(episode.rewards)
    else:
        earned = [0.0] * len(episode.rewards)
        if earned:
            earned[-1] = float(episode.success) if config.reward == "success" else episode.score
    rewards = tuple(
        config.reward_scale * reward - config.invalid_penalty * (not valid) - config.malformed_penalty * (not formed)
        for reward, valid, formed in zip(earned, episode.valid, episode.formed, strict=True)
    )
    counted = episode.ended_by != "failure" and all(map(math.isfinite, rewards))
    return Outcome(rewards, tuple(episode.observations[: len(rewards)]), counted)
