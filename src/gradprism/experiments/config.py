"""The configuration of `gradprism run`: a TOML file, `--set` overrides, and the resolved form that replays the run."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gradprism.concentration import METRICS
from gradprism.evaluation.config import EvaluationConfig
from gradprism.package_data import resolve_shipped
from gradprism.routing.policies import POLICIES
from gradprism.runtime.errors import ConfigError, MissingFileError
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft_config import SftConfig


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The base model, the same for the probe and for training."""

    path: str = Field(description="Folder (relative to the config file) or hub id.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="float32", description="Type of the weights.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it runs; auto takes a GPU where there is one."
    )
    context_length: int = Field(default=1024, ge=8, description="Tokens a trajectory or an episode may have.")
    chat_template: str | None = Field(default=None, description="Template file with generation markers, for models that have none.")


class CollectConfig(Section):
    """Gold trajectories that the environment's expert plays."""

    count: int = Field(ge=1, description="Tasks, types in turn.")
    split: str | None = Field(default=None, description="Their split; default the environment's training split.")
    max_steps: int = Field(default=50, ge=1, description="Actions an episode; a task not solved by then is left out.")


class CorpusConfig(Section):
    """The gold trajectories: files, or `collect`."""

    files: list[str] = Field(default=[], description="Files (relative to the config file).")
    format: str | None = Field(default=None, description="Format, where it should not be recognised.")
    collect: CollectConfig | None = Field(default=None, description="Have the environment's expert play them instead.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == (self.collect is not None):
            raise ValueError("give either files or collect")
        return self


class EnvironmentConfig(Section):
    """Where episodes are played."""

    name: str = Field(default="alfworld", description="Environment.")
    options: dict[str, str | int | float | bool] = Field(
        default={}, description="The environment's own, for ALFWorld difficulty, data_dir and games."
    )
    workers: int | None = Field(default=None, ge=1, description="Worker processes; default one a core.")


class ProbeConfig(Section):
    """The probe."""

    batch_tokens: int | None = Field(default=None, ge=1, description="Padded tokens a batch; default by device.")


class RouteConfig(Section):
    """The routing."""

    metric: Annotated[str, AfterValidator(METRICS.checked)] = Field(
        default="gini", description="Concentration metric: gini, cv, kurtosis or a registered one."
    )
    policy: Annotated[str, AfterValidator(POLICIES.checked)] = Field(
        default="concentration", description="What trajectories are ranked by; see `gradprism route`."
    )
    normalise: Literal["none", "per_parameter", "per_weight_norm"] = Field(
        default="none", description="What norms are divided by before they are compared: nothing, or each matrix's size."
    )
    rl_share: float = Field(default=0.5, gt=0, lt=1, description="Share that goes to RL; 0.5 splits at the median.")
    threshold: float | None = Field(default=None, description="Send what scores above this number to RL, whatever share that is.")

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        if self.threshold is not None and self.rl_share != 0.5:
            raise ValueError("give either rl_share or threshold")
        return self


class PassRateConfig(Section):
    """Episodes that the base plays for `route.policy = "pass_rate"`, as RL's rollouts would."""

    rollouts: int = Field(default=8, ge=1, description="Episodes a task.")


class RefreshConfig(Section):
    """Routing again while the model changes; the threshold stays the first route's."""

    after_sft: bool = Field(
        default=False,
        description="Probe what is left for RL on the SFT checkpoint; teach what now falls below the threshold by SFT.",
    )
    every_k_steps: int = Field(
        default=0,
        ge=0,
        description="During RL, probe again every so many steps and play only what is above the threshold; 0 for never.",
    )


class RunConfig(Section):
    """Everything that `gradprism run` does."""

    name: str = Field(description="Name of the run; its folder is `runs/<name>` unless `out` says otherwise.")
    out: str | None = Field(default=None, description="Run folder (relative to the working directory).")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of routing, SFT, RL and evaluation where those do not set their own."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; default one a core.")
    model: ModelConfig
    corpus: CorpusConfig
    environment: EnvironmentConfig = EnvironmentConfig()
    probe: ProbeConfig = ProbeConfig()
    route: RouteConfig = RouteConfig()
    pass_rate: PassRateConfig = PassRateConfig()
    refresh: RefreshConfig = RefreshConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.name}")


_Config = TypeVar("_Config", bound=RunConfig)


def load_config(path: Path, overrides: Sequence[str] = (), kind: type[_Config] = RunConfig) -> _Config:
    """Reads a TOML file, or the `config.json` of a run, applies `key.sub=value` overrides and resolves its paths.

    Raises `ConfigError` naming file and key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (IsADirectoryError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from None
    return build_config(apply_overrides(values, overrides), base=Path(path).resolve().parent, source=str(path), kind=kind)


def build_config(values: dict[str, Any], base: Path, source: str, kind: type[_Config] = RunConfig) -> _Config:
    """Validates `values`; paths of the model and the corpus are taken relative to `base`."""
    seed = values.get("seed", 0)
    for section in ("sft", "rl", "evaluation"):
        if isinstance(values.setdefault(section, {}), dict):
            values[section].setdefault("seed", seed)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        where, message = f"{key}: " if key else "", first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f"; got {first['input']!r}"  # a whole section says nothing
        raise ConfigError(f"{source}: {where}{message}{got}"[:500]) from None
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    "path": _resolve(config.model.path, base),
                    "chat_template": _resolve(config.model.chat_template, base) if config.model.chat_template else None,
                }
            ),
            "corpus": config.corpus.model_copy(update={"files": [_resolve(f, base) for f in config.corpus.files]}),
        }
    )


def _resolve(name: str, base: Path) -> str:
    """`name` below `base` where that exists, else unchanged (a hub id, or a path that the reader will call missing)."""
    name = resolve_shipped(name)
    below = base / name
    return str(below.resolve()) if below.exists() else name


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with `section.key=value` applied; a value is read as TOML, or as a plain string where it is no TOML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: expected key=value, for example rl.rounds=20")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section")
        target[last] = value
    return values
