"""What is told of a corpus and of its routes beside their columns: how they were made, what a cut costs, what warns."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gradprism.experiments.costs import last_routed
from gradprism.experiments.results import read_results
from gradprism.probing.manifest import ProbeManifest
from gradprism.routing.audit import Audit
from gradprism.routing.routes import Routes
from gradprism.routing.split import SIDES
from gradprism.runtime.errors import DataError, GradprismError
from gradprism.studio.columns import Column, category, measure, text
from gradprism.studio.corpus import DEFAULT, Corpus
from gradprism.studio.folders import CONFIG, RESULTS, STAGES, Folder, Problem
from gradprism.studio.trajectory import tokens_problem

# What is assumed of RL where no run tells: rollouts per task, each played (2 FLOPs per parameter and token) and trained on (6).
ROLLOUTS, PLAYED, TRAINED = 8, 2, 6
_LABELS = {"pass_rate": "pass rate"}


def corpus_meta(
    corpus: Corpus, routes: Sequence[Folder], run: Folder | None, tokenizer: Tokenizer | None, device_tflops: float | None
) -> dict[str, Any]:
    """`CorpusMeta` of `web/src/api.ts`; `run` is the one that the probe is a stage of."""
    corpus.begin()
    frame, hint = corpus.frame, tokens_problem(corpus, tokenizer)
    manifest = corpus.manifest
    return {
        "id": corpus.folder.id,
        "version": corpus.version,
        "name": corpus.folder.name,
        "path": corpus.folder.shown,
        "n": len(corpus),
        "n_response_tokens": int(frame["n_response_tokens"].sum()),
        "n_tokens": int(frame["n_tokens"].sum()),
        "manifest": _told(manifest),
        "units": [
            {"name": unit.name, "layer": unit.layer, "matrix": unit.kind, "n_parameters": unit.n_parameters}
            for unit in (corpus.probe.units if corpus.probe else ())
        ],
        "metrics": corpus.metrics,
        "per_turn": corpus.has_turns,
        "tokens": not hint,
        "losses": corpus.probe is not None and corpus.probe.token_losses(0) is not None,
        "tokens_hint": hint,
        "routes": [route_meta(corpus, folder) for folder in routes],
        "costs": _costs(corpus, run, device_tflops),
        "warnings": _warnings(corpus),
    }


def _told(manifest: Any) -> dict[str, Any]:
    if not isinstance(manifest, ProbeManifest):
        return manifest.model_dump()
    left_out = ("units", "n_parameters", "weight_norms", "costs", "totals", "rope_boundaries")
    return {key: value for key, value in manifest.to_json().items() if key not in left_out}


def _warnings(corpus: Corpus) -> list[str]:
    told = []
    if isinstance(manifest := corpus.manifest, ProbeManifest):
        totals, n = manifest.totals, len(corpus)
        told += [f"{totals.truncated} of {n} trajectories are cut to the context length"] if totals.truncated else []
        told += [f"{totals.unknown} tokens are unknown to the tokenizer"] if totals.unknown else []
    if undefined := int(np.isnan(corpus.frame[DEFAULT].to_numpy()).sum()):
        told.append(f"{undefined} trajectories have no {DEFAULT}: all of their norms are zero")
    if not corpus.texts.named.all():
        told.append(f"{int((~corpus.texts.named).sum())} trajectories name no task, so no environment can play theirs")
    return told


def _costs(corpus: Corpus, run: Folder | None, device_tflops: float | None) -> dict[str, Any]:
    seconds = corpus.probe.usage.wall_seconds if corpus.probe else 0.0
    rl, sft = _by_run(run)
    parameters = corpus.manifest.parameters if isinstance(corpus.manifest, ProbeManifest) else 0
    if device_tflops is not None and parameters:
        each = 1 / (device_tflops * 1e12)
        source = f"{device_tflops:g} TFLOP/s"
        told = f"{ROLLOUTS} rollouts per task, each as long as the trajectory, played and trained on; environments not counted"
        rl = _rate(0, ROLLOUTS * (PLAYED + TRAINED) * parameters * each, f"{source}; {told}")
        sft = _rate(0, TRAINED * parameters * each, f"{source}; one epoch")
    return {"rl": rl, "sft": sft, "probe_seconds": seconds or None}


def _by_run(run: Folder | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Rates by the run's results, where they tell of a route and of RL."""
    if run is not None and (run.path / RESULTS).is_file():
        with contextlib.suppress(GradprismError):
            found = last_routed(read_results(run.below(RESULTS).parent))
            if found is not None:
                source = f"{run.name}: RL on {found.n_rl} tasks took {found.rl_seconds:.0f} s"
                sft = f"{run.name}: SFT on {found.n_sft} trajectories took {found.sft_seconds:.0f} s"
                sft_rate = _rate(found.sft_seconds / found.n_sft, 0, sft) if found.n_sft else None
                return _rate(found.rl_seconds / found.n_rl, 0, source), sft_rate
    return None, None


def _rate(per_task: float, per_token: float, source: str) -> dict[str, Any]:
    return {"seconds_per_task": per_task, "seconds_per_token": per_token, "source": source}


# --- routes


def route_meta(corpus: Corpus, folder: Folder) -> dict[str, Any]:
    """`RouteMeta` of `web/src/api.ts`; raises `DataError` for a route that is broken."""
    routes = load_routes(corpus, folder)
    routing, audit = routes.routing, routes.audit()
    names = ("policy", "metric", "normalise", "threshold", "threshold_rule", "n_sft", "n_none", "n_rl", "n_both", "n_overrides")
    names = (*names, "within", "rl_share", "shares", "weights", "temperature", "order", "seed")
    read_only = read_only_because(corpus, folder)
    return {
        "id": folder.id,
        "name": folder.name,
        "path": folder.shown,
        "version": folder.version(),
        **{name: getattr(routing, name) for name in names},
        "cuts": routing.cut.at,
        "sides": routing.cut.sides,
        "asks_for": [name for name, sha in (("pass_rates", routing.pass_rates_sha256), ("target", routing.target_sha256)) if sha],
        "per_turn": routing.n_undefined_turns is not None,
        "read_only": None if read_only is None else dataclasses.asdict(read_only),
        "warnings": list(audit.warnings),
        "audit": audit_view(audit, "score", routing.threshold),
    }


def load_routes(corpus: Corpus, folder: Folder) -> Routes:
    """The routes of a folder, which must be of the corpus; raises `DataError`."""
    folder.version()  # refuses links that lead out
    routes = Routes.load(folder.path)
    if routes.frame["id"].to_list() != corpus.frame["id"].to_list():
        raise DataError(f"{folder.shown}: has other trajectories than {corpus.folder.shown}; route that probe again")
    return routes


def read_only_because(corpus: Corpus, folder: Folder) -> Problem | None:
    """Why a route cannot be overridden here; None where it can."""
    if corpus.probe is None:
        return Problem(f"{folder.shown}: its probe is not here, so there are no texts to move", "name the probe's folder as well")
    if any(above.name == STAGES and (above.parent / CONFIG).is_file() for above in folder.path.parents):
        command = f"gradprism route {corpus.folder.shown} --out DIR"
        return Problem(
            f"{folder.shown}: is a step of a run, on which later steps were built", f"make a route of your own: {command}"
        )
    return None


def route_columns(routes: Routes) -> list[Column]:
    """The columns of a route, in the corpus's order."""
    frame, routing = routes.frame, routes.routing
    score = frame["score"].to_numpy()
    cut = routing.sides_by_score(score)
    reasons = frame["reason"].fill_null("").to_list() if "reason" in frame.columns else [""] * len(frame)
    made = [
        measure("score", f"{routing.policy} score", score, "The policy's score, which is cut.", kind="metric"),
        category("side", "route", frame["route"].to_list(), SIDES, help="Where it goes."),
        category("cut", "route by score", cut, SIDES, help="Where it would go without overrides."),
        text("reason", "reason of the override", reasons),
    ]
    own = ("pass_rate", "target_cosine", "sft_weight", "rl_weight")
    others = [name for name in frame.columns if name in own or name.startswith("turn_score_")]
    return [*made, *(measure(name, _LABELS.get(name, name.replace("_", " ")), frame[name].to_numpy()) for name in others)]


def audit_view(audit: Audit, column: str, threshold: float) -> dict[str, Any]:
    """`Audit` of `web/src/api.ts`."""
    told = audit.to_json()
    kept = ("notes", "spearman", "split_by", "task_type_eta_squared", "threshold_standard_error", "share_within_one_standard_error")
    return {
        "column": column,
        "threshold": threshold,
        "warnings": told["warnings"],
        **{name: told[name] for name in kept},
        "agreement": told["agreement"]["metrics"],
    }
