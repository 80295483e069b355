"""What each kind of stage depends on, besides the stages before it: what is in files counts, not what they are called."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gradprism.experiments.config import RunConfig
from gradprism.experiments.steps import playable
from gradprism.models import check_model_name, check_trainable
from gradprism.routing.policies import TIES
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_file, sha256_folder


@dataclass(frozen=True)
class Reads:
    """The part of each stage's key that comes from the configuration."""

    config: RunConfig
    model: dict[str, Any]
    corpus: dict[str, Any]
    environment: dict[str, Any]

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """Reads the files' hashes; raises `ConfigError` for what cannot work, before anything is paid for."""
        check_model_name(config.model.path)
        check_trainable(config.model.path)
        environment = playable(config)
        for split in config.evaluation.splits:
            environment.tasks(split, 1)
        if config.corpus.collect is not None and config.corpus.collect.split:
            environment.tasks(config.corpus.collect.split, 1)
        template = config.model.chat_template
        return cls(
            config,
            {
                **config.model.model_dump(exclude={"path", "chat_template"}),
                "weights": _fingerprint(config.model.path),
                "chat_template": sha256_file(_existing("model.chat_template", template)) if template else None,
                "threads": config.threads,
            },
            {
                "files": [sha256_file(_existing("corpus.files", file)) for file in config.corpus.files],
                "format": config.corpus.format,
            },
            config.environment.model_dump(exclude={"workers"}),  # the number of workers changes no result
        )

    @property
    def collect(self) -> dict[str, Any]:
        """See `steps.collect`; as the others below."""
        wanted = self.config.corpus.collect
        return {"environment": self.environment, "collect": wanted.model_dump() if wanted else None}

    @property
    def probe(self) -> dict[str, Any]:
        return {"model": self.model, "corpus": self.corpus, "probe": self.config.probe.model_dump()}

    @property
    def pass_rates(self) -> dict[str, Any]:
        rl, names = self.config.rl, {"temperature", "max_steps", "max_action_tokens", "in_flight", "prompt"}
        return {
            "model": self.model,
            "corpus": self.corpus,
            "environment": self.environment,
            "rollouts": self.config.pass_rate.rollouts,
            "play": rl.model_dump(include=names),
            "seed": self.config.seed,
        }

    @property
    def route(self) -> dict[str, Any]:
        ties = {"ties": TIES} if self.config.route.policy == "pass_rate" else {}
        return {"route": self.config.route.model_dump(exclude_none=True), "seed": self.config.seed, **ties}

    @property
    def sft(self) -> dict[str, Any]:
        return {"model": self.model, "corpus": self.corpus, "sft": self.config.sft.model_dump()}

    @property
    def refresh(self) -> dict[str, Any]:
        return {"model": self.model, "probe": self.config.probe.model_dump()}

    @property
    def rl(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "corpus": self.corpus,
            "rl": self.config.rl.model_dump(),
            "environment": self.environment,
            "refresh": self.config.refresh.every_k_steps,
        }

    @property
    def evaluate(self) -> dict[str, Any]:
        return {"model": self.model, "environment": self.environment, "evaluation": self.config.evaluation.model_dump()}


def _existing(key: str, file: str) -> Path:
    if not Path(file).is_file():
        raise ConfigError(f"{key}: {file!r}: no such file")
    return Path(file)


def _fingerprint(model: str) -> str:
    """Hash of a local model's files; a hub id stands for itself."""
    return sha256_folder(Path(model)) if Path(model).is_dir() else model
