"""The manifest of a probe folder: everything that its norms depend on, and what a reader should know of model and corpus."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import sha256_json
from gradprism.trajectories.corpus import CorpusFile

# Keys that may differ between the attempts that fill one folder: they change no number beyond rounding.
INFORMATIVE = frozenset(
    {"model", "data", "read", "device", "parameters", "vocabulary", "n_parameters", "weight_norms", "costs", "totals", "masks"}
)
# Keys that are known only when the corpus has been read.
OF_CORPUS = frozenset({"corpus_sha256", "n_trajectories"})


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """A weight matrix whose gradient is measured: a column of the norms.

    `layer` is the first number in its `name` (0 where there is none), `kind` the name's end, as in `q` of `layers.0.q_proj`.
    `n_parameters` counts its entries (0 where the probe does not tell) and `weight_norm` is its Frobenius norm (None likewise).
    """

    name: str
    n_parameters: int = 0
    weight_norm: float | None = None

    @property
    def layer(self) -> int:
        """The decoder layer that it is in."""
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", self.name)
        return int(number[1]) if number else 0

    @property
    def kind(self) -> str:
        """The projection that it is, such as `gate`."""
        return self.name.rpartition(".")[2].removesuffix("_proj")


@dataclass(frozen=True, slots=True)
class Totals:
    """The corpus as rendered: its tokens, those of the loss, turns with a loss of their own, trajectories that were cut, and tokens that
    the tokenizer does not know."""

    tokens: int = 0
    response_tokens: int = 0
    turns: int = 0
    truncated: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds a product (multiply and add) and seconds an entry, for the outer and the gram form.

    `upcast`: whether half-precision inputs are multiplied in float32, which is faster where a processor has no instructions for them.
    """

    outer_product: float
    outer_entry: float
    gram_product: float
    gram_entry: float
    upcast: bool


@dataclass(frozen=True, kw_only=True)
class ProbeManifest:
    """Contents of a probe folder's `manifest.json`. `units`, `n_parameters` and `weight_norms` have an entry per column of the norms.

    `vocabulary` is the number of the model's embeddings; `scores` are those of `pass_scores` that each row has beside its norms; `costs`
    are those by which the form of each norm was chosen, None where the file's are of another form; `read` says how the files `data` were
    read, and `masks` how response tokens were found (`Renderer.way`).
    """

    units: tuple[str, ...]
    scores: tuple[str, ...] = ()
    n_parameters: tuple[int, ...] | None = None
    weight_norms: tuple[float | None, ...] | None = None
    model: str = ""
    model_class: str = ""
    weights_sha256: str = ""
    config_sha256: str = ""
    dtype: str = ""
    attention: str | None = None
    device: str = ""
    parameters: int = 0
    vocabulary: int | None = None
    rope_boundaries: tuple[int, ...] = ()
    costs: Costs | None = None
    tokenizer_sha256: str = ""
    template_sha256: str = ""
    masks: str = ""
    context_length: int | None = None
    data: tuple[CorpusFile, ...] = ()
    read: Mapping[str, Any] = field(default_factory=dict)
    corpus_sha256: str = ""
    n_trajectories: int = 0
    totals: Totals = Totals()
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Any, place: object) -> "ProbeManifest":
        """Raises `DataError`, naming `place`, for anything but a probe's manifest."""
        if isinstance(values, Mapping):
            values = {**values, "costs": _known_costs(values.get("costs"))}
        try:
            manifest = _ADAPTER.validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{place}: not a probe's manifest ({where}: {first['msg']}); name another folder") from None
        if unknown := set(manifest.scores).difference(PASS_SCORES):
            raise DataError(
                f"{place}: has scores that this version does not know ({min(unknown)}); read it with the version that wrote it"
            )
        for name in ("n_parameters", "weight_norms"):
            if len(getattr(manifest, name) or manifest.units) != len(manifest.units):
                raise DataError(f"{place}: not a probe's manifest ({name}: not one per unit); name another folder")
        return manifest

    def to_json(self) -> dict[str, Any]:
        """The contents of the file; without scores it says nothing of them."""
        return {key: value for key, value in asdict(self).items() if value or key != "scores"}

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that the norms depend on; each shard bears it, so that rows of another probe do not count."""
        return sha256_json({key: value for key, value in self.to_json().items() if key not in INFORMATIVE})

    @cached_property
    def unit_infos(self) -> tuple[UnitInfo, ...]:
        """The units with their sizes."""
        counts = self.n_parameters or (0,) * len(self.units)
        norms = self.weight_norms or (None,) * len(self.units)
        return tuple(UnitInfo(*each) for each in zip(self.units, counts, norms, strict=True))


def _known_costs(costs: Any) -> Costs | None:
    """Costs are no cause of a norm: those that another version wrote are measured again, and in no reader's way."""
    try:
        return _COSTS.validate_python(costs)
    except ValidationError:
        return None


_ADAPTER, _COSTS = TypeAdapter(ProbeManifest), TypeAdapter(Costs | None)
