"""The kinds of stages: what each depends on, and what it finds.

Without a model a stage works on the base. A checkpoint lies in its stage's own folder; routes, probes and evaluations in one below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Self

from pydantic import Field, JsonValue

from gradprism.checkpoints import check_trainable
from gradprism.environments.protocol import Environment
from gradprism.environments.registry import make_environment
from gradprism.evaluation.config import EvaluationConfig
from gradprism.experiments.arms import RouteConfig
from gradprism.experiments.config import (
    CollectConfig,
    CorpusConfig,
    EnvironmentConfig,
    ModelConfig,
)
from gradprism.experiments.results import (
    Ends,
    HeatMap,
    MetricAudit,
    Outcomes,
    Part,
    Point,
    Routing,
    Share,
    Task,
    TrainingStep,
)
from gradprism.experiments.stage import Stage
from gradprism.rollouts.config import RolloutConfig
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_file, sha256_folder, sha256_json
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft_config import SftConfig
from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.corpus import Corpus as Trajectories
from gradprism.trajectories.corpus import OnBad, load_corpus
from gradprism.trajectories.corpus_paths import expand
from gradprism.trajectories.mapping import FieldMap

PROBE, ROUTE = "probe", "route"  # in the folders of the stages that make them
MODELS, DATA = "gradprism.experiments.model_work", "gradprism.experiments.data_work"


@dataclass(frozen=True)
class Base:
    """The base model by what is in its files, its chat template and its options, and how it is loaded."""

    weights: str  # hash of a folder; a hub id stands for itself
    template: str | None  # hash of a template of the user's own and of the options that were chosen; None for neither
    dtype: str
    device: str
    context_length: int
    threads: int | None
    path: str = field(compare=False)
    chat: ChatOptions = field(compare=False)

    @classmethod
    def of(cls, config: ModelConfig, threads: int | None) -> Self:
        """Reads the hashes; raises `ConfigError` for a model that cannot work, before anything is paid for."""
        check_trainable(config.path)
        path = Path(config.path)
        weights = sha256_folder(path) if path.is_dir() else sha256_file(path) if path.is_file() else config.path
        file = _existing("model.chat_template", config.chat_template) if config.chat_template else None
        template, chat = sha256_file(file) if file else None, config.chat
        if chosen := chat.changed():
            template = sha256_json([template, chosen])
        return cls(weights, template, config.dtype, config.device, config.context_length, threads, config.path, chat)


@dataclass(frozen=True)
class World:
    """The environment by its options, and by what is in the files and folders that they name."""

    name: str
    options: Mapping[str, str | int | float | bool]
    contents: Mapping[str, str]
    paths: Mapping[str, str] = field(compare=False)
    workers: int | None = field(compare=False)

    @classmethod
    def of(cls, config: EnvironmentConfig, contents_told: Mapping[str, str] | None = None) -> Self:
        """Reads the hashes of files; of a folder, which may hold gigabytes, the names and sizes of its files count.

        The environment's own contents (`Environment.contents`) count as well; where they are told, the environment is not made.
        """
        named = {key: Path(value) for key, value in config.options.items() if isinstance(value, str) and Path(value).exists()}
        contents = {key: sha256_file(path) if path.is_file() else _listing(path) for key, path in named.items()}
        options = {key: value for key, value in config.options.items() if key not in named}
        contents |= make_environment(config.name, **config.options).contents() if contents_told is None else contents_told
        return cls(config.name, options, contents, {key: str(path) for key, path in named.items()}, config.workers)

    def make(self) -> Environment:
        """The environment."""
        return make_environment(self.name, **self.options, **self.paths)


def _listing(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_json([[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files])


def _existing(key: str, file: str) -> Path:
    if not Path(file).is_file():
        raise ConfigError(f"{key}: {file!r}: no such file")
    return Path(file)


def _files(file: str, key: str) -> tuple[Path, ...]:
    return expand([file]) if Path(file).is_dir() or has_magic(file) else (_existing(f"{key}.files", file),)


@dataclass(frozen=True)
class Files:
    """A corpus in files, by what is in them."""

    sha256: tuple[str, ...]
    format: str | None
    paths: tuple[Path, ...] = field(compare=False)

    @staticmethod
    def of(config: CorpusConfig, key: str = "corpus") -> "Files":
        """Reads the hashes; raises `ConfigError` naming the section `key` for a file that is not there, or an unknown name."""
        paths = tuple(path for file in config.files for path in _files(file, key))
        hashes = tuple(map(sha256_file, paths))
        if not config.map and config.on_bad == "fail":
            return Files(hashes, config.format, paths)
        names = FieldMap.of(config.map).to_json()
        return OwnFiles(hashes, config.format, paths, tuple(sorted(names.items())), config.on_bad)

    def read(self, records: Sequence[object] = ()) -> Trajectories:
        """The whole corpus, or records of it."""
        return load_corpus(records or self.paths, format=self.format)  # pyright: ignore[reportArgumentType] # what is none is refused


@dataclass(frozen=True)
class OwnFiles(Files):
    """A corpus in files that names its fields in its own way (`mapping`), or of which bad records are left out."""

    mapping: tuple[tuple[str, str], ...]
    on_bad: OnBad

    def read(self, records: Sequence[object] = ()) -> Trajectories:
        """The whole corpus, or records of it, without bad ones where those are left out."""
        return load_corpus(records or self.paths, format=self.format, mapping=dict(self.mapping), on_bad=self.on_bad)  # pyright: ignore[reportArgumentType] # as above


@dataclass(frozen=True)
class Collect(Stage[Part]):
    """Trajectories of the environment's expert."""

    kind = "collect"
    runner = f"{DATA}:collect_corpus"

    world: World
    config: CollectConfig


Corpus = Files | Collect


class Probed(Part):
    """Size of the corpus and of the model (`matmul`: parameters that every token is multiplied by), and the mean norms."""

    trajectories: int
    parameters: int
    matmul: int
    heat_map: HeatMap


@dataclass(frozen=True)
class Probe(Stage[Probed]):
    """A probe of the whole corpus."""

    kind = "probe"
    Found = Probed
    runner = f"{MODELS}:probe_corpus"
    resumes = True

    base: Base
    corpus: Corpus
    batch_tokens: int | None
    model: "Sft | Rl | None" = None
    scores: tuple[str, ...] = ()

    @property
    def causes(self) -> dict[str, JsonValue]:
        """The fields; without scores of the pass as it was before there were any."""
        found = super().causes
        return found if self.scores else {name: value for name, value in found.items() if name != "scores"}


@dataclass(frozen=True)
class PassRates(Stage[Part]):
    """Episodes that the base plays on every task of the corpus, as RL's rollouts would be."""

    kind = "pass-rates"
    runner = f"{MODELS}:play_pass_rates"

    base: Base
    corpus: Corpus
    world: World
    rollouts: int
    play: RolloutConfig
    seed: int


@dataclass(frozen=True)
class PassRatesOf(PassRates):
    """Those of a checkpoint."""

    model: "Sft"


class Routed(Part):
    """Sizes of both sides, of what goes to neither and to both, how many of RL's were drawn among equal pass rates (None without them),
    and the scores."""

    n_sft: int
    n_rl: int
    n_rl_by_chance: int | None
    n_none: int = 0
    n_both: int = 0
    scores: Routing


@dataclass(frozen=True)
class Route(Stage[Routed]):
    """A route of a probe."""

    kind = "route"
    Found = Routed
    runner = f"{DATA}:route_corpus"

    probe: Probe
    config: RouteConfig
    seed: int
    pass_rates: PassRates | None = None


class Trained(Part):
    """The log of a training, the evaluations that it stopped for, and its warnings."""

    examples: int
    history: list[TrainingStep]
    curve: list[Point]
    warnings: list[str] = Field(default=[])


@dataclass(frozen=True)
class Sft(Stage[Trained]):
    """SFT of the model, or the base, on the SFT side of a route or on a whole corpus; with nothing to train on the model stays as it is."""

    kind = "sft"
    Found = Trained
    runner = f"{MODELS}:train_by_imitation"
    resumes = True

    base: Base
    config: SftConfig
    data: "Files | Collect | Route | Refresh"
    model: "Sft | None" = None


class Moved(Part):
    """Numbers of trajectories that a refresh routed again, and that moved to SFT."""

    trajectories: int
    moved_to_sft: int


@dataclass(frozen=True)
class Refresh(Stage[Moved]):
    """The RL side of a route probed on a checkpoint, and routed again at the route's threshold."""

    kind = "refresh"
    Found = Moved
    runner = f"{MODELS}:refresh_route"
    resumes = True

    base: Base
    first: Route
    model: Sft


@dataclass(frozen=True)
class Rl(Stage[Trained]):
    """RL of the model, or the base, on the RL side of a route or on every task of a corpus; with nothing to play the model stays as it is.

    `share_of`: its rounds are for the tasks of that, of which only the share that `tasks` holds are played. Every `refresh_every` rounds
    what is left is probed and routed again.
    """

    kind = "rl"
    Found = Trained
    runner = f"{MODELS}:train_by_rl"
    resumes = True

    base: Base
    world: World
    config: RlConfig
    tasks: Files | Collect | Route | Refresh
    model: Sft | None = None
    share_of: Files | Collect | Route | None = None
    refresh_every: int = 0

    @property
    def work(self) -> float:
        return float(self.config.rounds)


class Evaluated(Part):
    """Success and score of every task, by split, the tasks in the order in which they were played, how episodes ended, means of the
    score's named parts, and remarks."""

    success: dict[str, Outcomes]
    score: dict[str, list[float]]
    tasks: dict[str, list[Task]]
    ends: dict[str, Ends] = Field(default={})
    parts: dict[str, dict[str, Share]] = Field(default={})
    remarks: list[str] = Field(default=[])


@dataclass(frozen=True)
class Evaluate(Stage[Evaluated]):
    """An evaluation of the model, or the base."""

    kind = "evaluate"
    Found = Evaluated
    runner = f"{MODELS}:evaluate_model"

    base: Base
    world: World
    config: EvaluationConfig
    model: Sft | Rl | None = None


class Imitated(Part):
    """Mean loss in nats over the response `tokens` of `trajectories`, each token counted alike."""

    loss: float
    tokens: int
    trajectories: int


@dataclass(frozen=True)
class HeldOutLoss(Stage[Imitated]):
    """The loss of the model, or the base, on demonstrations that it was not trained on."""

    kind = "held-out-loss"
    Found = Imitated
    runner = f"{MODELS}:measure_held_out_loss"

    base: Base
    demonstrations: Files | Collect
    model: Sft | Rl | None = None


class Audited(Part):
    """An audit by metric."""

    audits: dict[str, MetricAudit]


@dataclass(frozen=True)
class Audit(Stage[Audited]):
    """The audit of a probe for each metric, compared with `others`, which `labels` name."""

    kind = "audit"
    Found = Audited
    runner = f"{DATA}:audit_probes"

    probe: Probe
    labels: tuple[str, ...]
    others: tuple[Probe, ...]
    metrics: tuple[str, ...]
    seed: int
    pass_rates: PassRates | None = None

    @property
    def probes(self) -> tuple[Probe, ...]:
        """All probes that it reads."""
        return (self.probe, *self.others)
