"""The configuration of runs and experiments: a TOML file, `--set` overrides, and the resolved form that replays it."""

import os
from collections.abc import Iterator, Sequence
from datetime import date
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from gradprism.evaluation.config import EvaluationConfig
from gradprism.experiments.arms import ArmConfig, FurtherEvaluation, RefreshConfig, RouteConfig, Section
from gradprism.experiments.results import Design
from gradprism.package_data import resolve_shipped, resolve_shipped_model, shipped_name
from gradprism.probing.pass_scores import check_pass_scores
from gradprism.runtime.errors import ConfigError, MissingFileError, one_line
from gradprism.runtime.files import parse_json, parse_toml
from gradprism.runtime.settings import wrong_setting
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft_config import SftConfig
from gradprism.trajectories.chat_options import Calls, ChatOptions, Merge, Thoughts

Values = dict[str, Any]  # a configuration before it is checked, or as JSON
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ModelConfig(Section):
    """The base model, the same for the probe and for training."""

    path: str = Field(description="Folder (relative to the config file) or hub id.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="float32", description="Type of the weights.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it runs; auto takes a GPU where there is one."
    )
    context_length: int = Field(default=1024, ge=8, description="Tokens that a trajectory or an episode may have.")
    chat_template: str | None = Field(default=None, description="Jinja file in place of the tokenizer's own chat template.")
    thoughts: Thoughts | None = Field(
        default=None, description="Thoughts that the template's render would lose; default as the model was trained, or fail."
    )
    merge: list[Merge] | None = Field(
        default=None, description="For templates without a system role (system) or with strict alternation (alternate)."
    )
    calls: Calls | None = Field(default=None, description="Tool calls as the template writes them (template), or as text.")
    template_date: date | None = Field(default=None, description="Today, for templates that print the date.")
    template_args: dict[str, JsonValue] = Field(default={}, description="Variables of the template.")

    @model_validator(mode="after")
    def _arguments_are_free(self) -> Self:
        ChatOptions(arguments=self.template_args)
        return self

    @property
    def chat(self) -> ChatOptions:
        """The options of rendering: these, and for the rest those with which the model was trained."""
        file, day = self.chat_template, self.template_date
        return ChatOptions.of_model(
            self.path,
            file=Path(file) if file else None,
            thoughts=self.thoughts,
            merge=None if self.merge is None else tuple(self.merge),
            calls=self.calls,
            date=None if day is None else day.isoformat(),
            arguments=self.template_args,
            configured=True,
        )


class CollectConfig(Section):
    """Gold trajectories that the environment's expert plays."""

    added: ClassVar[frozenset[str]] = frozenset(("skip",))

    count: int = Field(ge=1, description="Tasks, types in turn.")
    split: str | None = Field(default=None, description="Their split; default the environment's training split.")
    skip: int = Field(default=0, ge=0, description="Tasks of the split passed over before them: another corpus of the same kind.")
    max_steps: int = Field(default=50, ge=1, description="Actions per episode; a task not solved by then is left out.")


class CorpusConfig(Section):
    """The gold trajectories: files, or `collect`."""

    files: list[str] = Field(default=[], description="Files (relative to the config file).")
    format: str | None = Field(default=None, description="Format, where it should not be recognised.")
    collect: CollectConfig | None = Field(default=None, description="Have the environment's expert play them instead.")
    map: dict[str, str | dict[str, str]] = Field(default={}, description="Own names of fields and roles, as of `--map`.")
    on_bad: Literal["fail", "skip"] = Field(default="fail", description="Records that cannot be read or rendered.")

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
    workers: int | None = Field(default=None, ge=1, description="Worker processes; default one per core.")


class ProbeConfig(Section):
    """The probe."""

    batch_tokens: int | None = Field(default=None, ge=1, description="Padded tokens per batch; default by device.")
    scores: Annotated[tuple[str, ...], AfterValidator(check_pass_scores)] = Field(
        default=(), description="Scores of the pass to take beside the norms; those that arms route by are taken anyway."
    )


class PassRateConfig(Section):
    """Episodes that the base plays for `route.policy = "pass_rate"` or `"learnability"`, as RL's rollouts would."""

    rollouts: int = Field(default=8, ge=1, description="Episodes per task.")


class AuditConfig(Section):
    """Probes beside the experiment's own, to see what routes depend on."""

    dtypes: list[Literal["float32", "bfloat16"]] = Field(default=[], description="Types of the weights.")
    context_lengths: list[Annotated[int, Field(ge=8)]] = Field(default=[], description="Lengths that trajectories are cut to.")
    checkpoints: list[str] = Field(default=[], description="Arms whose first seed's model is probed.")


class GainConfig(Section):
    """What `gradprism experiment gain` measures: what SFT or RL gains on each group of similar trajectories."""

    groups: int = Field(default=40, ge=5, description="Groups of the corpus, each trained on by itself.")
    demonstrations: int = Field(
        default=100, ge=1, description="Tasks of the evaluation's split whose expert trajectories' loss is measured."
    )


class ExperimentConfig(Design, Section):
    """Everything that `gradprism run` and `gradprism experiment` do.

    Without `arms` it is a run of one seed: the base, SFT on its part of `route`, and RL on the rest. With arms, `rl.rounds` are for the
    whole corpus, and every arm has its own route.
    """

    out: str | None = Field(default=None, description="Run folder (relative to the working directory).")
    seed: Seed = Field(default=0, description="Seed of routing, SFT, RL and evaluation where those do not set their own.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; default one per core.")
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
    evaluations: list[FurtherEvaluation] = Field(default=[], description="Further evaluations, on which the first does not depend.")
    held_out: CorpusConfig | None = Field(
        default=None, description="Demonstrations that no arm trains on, whose mean loss under every arm's model is measured."
    )
    seeds: list[Seed] | None = Field(default=None, min_length=1, description="Training seeds of the arms.")
    arms: list[ArmConfig] = Field(default=[], description="Arms, in the order of the tables; earlier groups run first.")
    audit: AuditConfig = AuditConfig()
    gain: GainConfig = GainConfig()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.name}")

    @property
    def all_arms(self) -> list[ArmConfig]:
        """The arms; of a run those that it consists of."""
        return self.arms or [
            ArmConfig(name="base", title="Base", sft="none", rl="none"),
            ArmConfig(name="sft", title="SFT", rl="none", route=self.route),
            ArmConfig(name="rl", title="SFT, then RL", rounds=self.rl.rounds, route=self.route, refresh=self.refresh),
        ]

    @property
    def all_seeds(self) -> list[int]:
        """The training seeds."""
        return [self.seed] if self.seeds is None else self.seeds

    def seeds_of(self, arm: ArmConfig) -> list[int]:
        """The training seeds of an arm."""
        return self.all_seeds[: arm.max_seeds]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = [arm.name for arm in self.all_arms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"arms {', '.join(sorted(twice))}: appear twice")
        if self.arms and (self.route != RouteConfig() or self.refresh != RefreshConfig()):
            raise ValueError("route and refresh are those of a run; with arms, give each its own")
        for where, arm in self._named_arms():
            if arm not in names:
                raise ValueError(f"{where}: no arm is called {arm}")
        if self.sft.packing != "off" and any(arm.route.order and arm.sft == "routed" for arm in self.all_arms):
            raise ValueError("sft.packing: fills rows by length, which keeps no order of a route; leave packing off")
        self._check_evaluations()
        if self.held_out and self.held_out.collect and not self.held_out.collect.split:
            raise ValueError("held_out.collect.split: name the split of the demonstrations, one that the corpus is not of")
        if len(set(self.all_seeds)) < len(self.all_seeds):
            raise ValueError(f"seeds: {', '.join(map(str, self.all_seeds))} has one twice")
        return self

    def _named_arms(self) -> Iterator[tuple[str, str]]:
        """Where a setting names an arm, and the arm."""
        singles = ("base_arm", "sft_arm", "full_rl_arm", "sft_then_rl_arm")
        yield from ((key, arm) for key in singles if (arm := getattr(self, key)) is not None)
        yield from (("reference_arms", arm) for arm in self.reference_arms)
        yield from (("audit.checkpoints", arm) for arm in self.audit.checkpoints)
        yield from ((f"evaluations {further.name}", arm) for further in self.evaluations for arm in further.arms)
        yield from ((f"claims {claim.text!r}", arm) for claim in self.claims for arm in (claim.better, claim.worse))
        yield from ((f"sweeps {sweep.title!r}", arm) for sweep in self.sweeps for arm in sweep.arms.values())

    def _check_evaluations(self) -> None:
        groups, names = {arm.group for arm in self.all_arms}, [further.name for further in self.evaluations]
        for further in self.evaluations:
            where = f"evaluations {further.name}"
            if names.count(further.name) > 1:
                raise ValueError(f"{where}: appears twice")
            if unknown := sorted(set(further.groups) - groups):
                raise ValueError(f"{where}: no arm is in group {unknown[0]}; choose from {', '.join(sorted(groups))}")
            if others := sorted(set(further.splits) - set(self.evaluation.splits)):
                raise ValueError(f"{where}: evaluation.splits has no {others[0]}, and its tasks are of those")

    def check_first_evaluation(self) -> None:
        """Raises `ConfigError` for a first evaluation that tables cannot show; measured gains have other rules."""
        first = self.evaluation
        if first.attempts > 1:
            raise ConfigError(
                f"evaluation.attempts: {first.attempts}, and the first evaluation plays each task once; give it under [[evaluations]]"
            )
        if first.temperature and self.evaluations:
            raise ConfigError(
                f"evaluation.temperature: {first.temperature:g}, and pages compare [[evaluations]] with a greedy one; leave it at 0, or "
                "have no [[evaluations]]"
            )

    def portable(self, folder: Path) -> Values:
        """The configuration as JSON with paths relative to `folder`, so that it replays from another checkout.

        What comes with the package is named, and found wherever that is installed.
        """

        def relative(path: str) -> str:
            if not Path(path).is_absolute():
                return path
            return shipped_name(path) or os.path.relpath(path, folder.resolve())

        values = self.model_dump(mode="json")
        values["model"]["path"] = relative(self.model.path)
        if self.model.chat_template:
            values["model"]["chat_template"] = relative(self.model.chat_template)
        for name, corpus in (("corpus", self.corpus), ("held_out", self.held_out)):
            if corpus:
                values[name]["files"] = [relative(file) for file in corpus.files]
        return values


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads a TOML file, or the `config.json` of a run, applies `key.sub=value` overrides and resolves its paths.

    Raises `MissingFileError`, and `ConfigError` naming file and key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = parse_json(text) if Path(path).suffix == ".json" else parse_toml(text)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (IsADirectoryError, ValueError) as error:
        raise ConfigError(f"{path}: not a TOML file ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections; give a TOML file, or the config.json of a run")
    return build_config(apply_overrides(values, overrides), base=Path(path).resolve().parent, source=str(path))


def build_config(values: Values, base: Path, source: str) -> ExperimentConfig:
    """Validates `values`; paths of the model, the corpus and the held-out demonstrations are taken relative to `base`."""
    for section in ("sft", "rl", "evaluation"):
        if isinstance(values.setdefault(section, {}), dict):
            values[section].setdefault("seed", values.get("seed", 0))
    try:
        config = ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {wrong_setting(error, ExperimentConfig)}"[:500]) from None
    template = config.model.chat_template
    paths = {
        "path": _resolve(resolve_shipped_model(config.model.path), base),
        "chat_template": _resolve(template, base) if template else None,
    }
    update = {
        "model": config.model.model_copy(update=paths),
        "corpus": _resolved(config.corpus, base),
        "held_out": config.held_out and _resolved(config.held_out, base),
    }
    return config.model_copy(update=update)


def _resolved(corpus: CorpusConfig, base: Path) -> CorpusConfig:
    return corpus.model_copy(update={"files": [_resolve(file, base) for file in corpus.files]})


def _resolve(name: str, base: Path) -> str:
    """`name` below `base` where that exists or is a glob, else unchanged (a hub id, or a path that the reader will call missing)."""
    name = resolve_shipped(name)
    below = base / name
    if has_magic(name):
        return str(below)
    try:
        return str(below.resolve()) if below.exists() else name
    except OSError:  # a name that no file system takes
        return name


def apply_overrides(values: Values, overrides: Sequence[str]) -> Values:
    """`values` with `section.key=value` applied; a value is read as TOML, or as a plain string where it is no TOML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: expected key=value, for example rl.rounds=20")
        try:
            value = parse_toml(f"value = {text}")["value"]
        except ValueError:
            value = text
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section")
        target[last] = value
    return values
