"""Who plays an evaluation: a language model, the environment's expert, or chance."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gradprism.checkpoints import load_config, tokenizer_source
from gradprism.environments.play import Play, play
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Step, Task
from gradprism.models import ModelSpec, longest_context
from gradprism.probing.fingerprint import weights_fingerprint
from gradprism.rollouts.config import RolloutConfig
from gradprism.rollouts.episode import Episode, StopReason, Turn
from gradprism.rollouts.player import OnDone, Player
from gradprism.rollouts.server import Connection, Server, ServerGenerator
from gradprism.runtime.usage import Usage
from gradprism.trajectories.rendering import Renderer, load_tokenizer, template_fingerprint, tokenizer_fingerprint

_PLACEHOLDER = re.compile(r"<[^<>]*>")
_WORD = re.compile(r"[A-Za-z]{3,}")


@dataclass(frozen=True, slots=True)
class Seeds:
    """Seeds of a batch: one for all of it, and one for each of its `episodes`, which does not depend on what batch that is in."""

    batch: int
    episodes: Sequence[str]


class Agent(Protocol):
    """Plays batches of tasks; what it does depends on the batch and its seeds alone."""

    def description(self) -> Mapping[str, str]:
        """All that tells it from other agents, for the manifest."""
        ...

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: RolloutConfig,
        seeds: Seeds,
        on_done: OnDone,
    ) -> tuple[list[Episode], Usage]:
        """One episode per task, in order, and what was used."""
        ...


@dataclass(frozen=True, slots=True)
class ModelAgent:
    """A `transformers` causal language model with its tokenizer."""

    model: Any
    tokenizer: Any

    def description(self) -> Mapping[str, str]:
        """Fingerprints of weights, tokenizer and template, and the type of the weights."""
        return {
            "kind": "model",
            "weights": weights_fingerprint(self.model),
            "dtype": str(self.model.dtype),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": template_fingerprint(self.tokenizer),
        }

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: RolloutConfig,
        seeds: Seeds,
        on_done: OnDone,
    ) -> tuple[list[Episode], Usage]:
        """See `Agent`."""
        player = Player(self.model, Renderer(self.tokenizer, None), pool, config)
        return player.play(tasks, seeds.batch, on_done), player.used


@dataclass(frozen=True, slots=True)
class ServerAgent:
    """A model that a server of OpenAI's completions interface plays (`vllm serve`, SGLang); `model` names the folder or hub id of which
    tokenizer, chat template and configuration are read. With which weights the server answers is its own affair."""

    server: Server
    model: ModelSpec

    def description(self) -> Mapping[str, str]:
        """Name and root of what is served, fingerprints of tokenizer and template; raises `ConfigError` where the server is not there."""
        card, tokenizer = self.server.card(), self._tokenizer()
        return {
            "kind": "server",
            "served": self.server.name,
            "root": str(card.get("root", "")),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "template": template_fingerprint(tokenizer),
        }

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: RolloutConfig,
        seeds: Seeds,
        on_done: OnDone,
    ) -> tuple[list[Episode], Usage]:
        """See `Agent`."""
        renderer, described = Renderer(self._tokenizer(), None), load_config(self.model.path)
        served = self.server.card().get("max_model_len")
        if config.context_length is None and type(served) is int:  # a truth value is none
            config = config.model_copy(update={"context_length": min(served, longest_context(described) or served)})
        # Models have more embeddings than tokens, and tokenizers more tokens than the configuration says.
        vocabulary = max(len(renderer.tokenizer), getattr(described.get_text_config(), "vocab_size", None) or 0)
        with Connection(self.server, config.in_flight) as connection:

            def answers(slots: int) -> ServerGenerator:
                end, most = renderer.stop_id, config.max_action_tokens
                return ServerGenerator(connection, renderer.tokenizer, end, most, config.temperature, vocabulary)

            player = Player(described, renderer, pool, config, answers)
            return player.play(tasks, seeds.batch, on_done), player.used

    def _tokenizer(self) -> Any:
        return load_tokenizer(tokenizer_source(self.model.path), self.model.chat_template)


@dataclass(frozen=True, slots=True)
class ScriptedAgent:
    """The environment's expert, or uniformly random admissible actions."""

    kind: Literal["expert", "random"]

    def description(self) -> Mapping[str, str]:
        """Its kind."""
        return {"kind": self.kind}

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: RolloutConfig,
        seeds: Seeds,
        on_done: OnDone,
    ) -> tuple[list[Episode], Usage]:
        """See `Agent`."""
        expert = self.kind == "expert"
        players = [environment.expert() if expert else RandomPolicy(seed) for seed in seeds.episodes]
        plays = play(pool, tasks, players, config.max_steps, lambda one: on_done(_episode(one)))
        return [_episode(one) for one in plays], Usage(environment_steps=sum(len(one.actions) for one in plays))


def _episode(one: Play) -> Episode:
    episode = Episode(one.task)
    episode.take(one.steps[0])
    for before, action, after in zip(one.steps, one.actions, one.steps[1:], strict=False):
        episode.turns.append(Turn(before.observation, action))
        episode.take(after)
    if one.gave_up:
        episode.stop_reason = StopReason.GAVE_UP
    return episode


class RandomPolicy:
    """Each admissible action is as likely as any other; `<…>` in one stands for one to three words of the first observation."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._words: list[str] = []

    def act(self, step: Step) -> str:
        """The next action."""
        self._words = self._words or _WORD.findall(step.observation) or ["look"]
        action = self._random.choice(step.info.admissible) if step.info.admissible else "look"
        return _PLACEHOLDER.sub(lambda _: " ".join(self._random.choices(self._words, k=self._random.randint(1, 3))), action)
