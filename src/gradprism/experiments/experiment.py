"""Runs an experiment: every arm with every seed, and then gathers what was found as `results.json`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gradprism.experiments.apart import check_apart
from gradprism.experiments.config import ExperimentConfig
from gradprism.experiments.costs import stage_flops
from gradprism.experiments.folders import CONFIG, LOCK, check_holds_run
from gradprism.experiments.plan import Plan, PlannedRun, Surroundings
from gradprism.experiments.playable import check_tasks
from gradprism.experiments.results import (
    RESULTS,
    Arm,
    Design,
    HeldOut,
    Machine,
    Model,
    Point,
    Results,
    Run,
    Sampled,
    Sampling,
    Stage,
    has_results,
    read_results,
    write_results,
)
from gradprism.experiments.schedule import Status, run_stages, status
from gradprism.experiments.stage import AnyStage, Store, read_part
from gradprism.experiments.stages import Evaluate, Files, HeldOutLoss, PassRates, Refresh, Rl, Sft
from gradprism.runtime.errors import FolderInUseError, MissingDependencyError, MissingFileError
from gradprism.runtime.files import write_json
from gradprism.runtime.folders import exclusive_lock

ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Job:
    """The arms and seeds to run, and the results folder.

    `jobs`: stages at once, each in a process of its own; None for one after another in this process. `groups`, `arms`: only the arms of
    these groups, and these arms. `extend`: keep the runs that the results already have. `replace`: give up those of other settings.
    `fresh`: make again what other code made.
    """

    config: ExperimentConfig
    out: Path
    jobs: int | None = None
    groups: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    extend: bool = False
    replace: bool = False
    fresh: bool = False


def run_job(job: Job) -> Results:
    """Runs what is not done, and writes `results.json` and `config.json` into the results folder; returns the results.

    What is done when a stage fails is written all the same. Before the first one every task of a corpus of files is asked of the
    environment, where RL is to play it, and held-out demonstrations are read. Raises `FolderInUseError` where one of the folders holds
    something else, or the results folder runs that this would lose, unless it is to `replace` them, and where another command runs the
    same experiment.
    """
    job.config.check_first_evaluation()
    _check_folders(job)
    plan = Plan(job.config)
    earlier, wanted = _prepare(job, plan)
    store = Store(job.config.folder, job.fresh)
    _check_nothing_is_lost(job, plan, store, earlier)
    if not wanted:
        return _write(job, plan, earlier)
    _check_inputs(plan, store.pending(wanted))
    with exclusive_lock(store.folder, LOCK, "the experiment is being run"):
        write_json(store.folder / CONFIG, job.config.model_dump(mode="json"), sort_keys=False)
        write_json(store.folder / ENVIRONMENT, plan.surroundings.model_dump())
        try:
            run_stages(store, wanted, plan.labels, job.jobs, job.config.threads)
        finally:
            results = _write(job, plan, earlier)
    return results


def _check_inputs(plan: Plan, pending: Sequence[AnyStage]) -> None:
    """Looks into the corpus and the demonstrations, as far as the stages need it, before any is paid for."""
    if isinstance(plan.corpus, Files) and any(isinstance(stage, Rl | PassRates) for stage in pending):
        check_tasks(plan.corpus, plan.world.make())
    if plan.demonstrations and any(isinstance(stage, HeldOutLoss) for stage in pending):
        check_apart(plan.demonstrations, plan.corpus, plan.world.make())


def job_status(job: Job, *, as_run: bool = False) -> Status:
    """The stages that are done, running and pending; trains nothing, and of an experiment that was run before it needs no environment.

    With `as_run` it raises what `run_job` would raise of the same job before its first stage, but for another command that runs it: that
    one is what is told of. Where the environment is not here, what is to be asked of it is left out.
    """
    job.config.check_first_evaluation()
    if as_run:
        _check_folders(job)
    told = None
    try:
        plan = Plan(job.config)
    except MissingDependencyError:
        told = _surroundings_told(job.config)
        plan = Plan(job.config, told)
    earlier, wanted = _prepare(job, plan)
    store = Store(job.config.folder, job.fresh)
    if as_run:
        _check_nothing_is_lost(job, plan, store, earlier)
        if told is None:
            _check_inputs(plan, store.pending(wanted))
    return status(store, wanted, plan.labels, job.jobs or 1)


def _surroundings_told(config: ExperimentConfig) -> Surroundings | None:
    """What the run folder tells of the environment; None where it tells nothing, or of another one."""
    path, named = config.folder / ENVIRONMENT, config.environment
    told = read_part(Surroundings, path, "delete it, a run writes it again") if path.is_file() else None
    return told if told and (told.name, told.options) == (named.name, named.options) else None


def _prepare(job: Job, plan: Plan) -> tuple[Results, list[AnyStage]]:
    """The results that are extended (else empty ones), and the stages that are wanted."""
    if job.extend and not has_results(job.out):
        raise MissingFileError(f"{job.out / RESULTS}: no such file, so there is nothing to extend")
    earlier = read_results(job.out) if job.extend else _empty(job.config)
    reusable = _reusable(plan, earlier)
    there = {name for key, run in reusable.items() for name in (key, *_beside(run))}
    kept = [run for run in plan.runs if run.evaluation.name in reusable]
    there |= {run.watched.name for run in kept if run.watched}
    # The loss of a run that is kept is measured where its model is: none is trained again for it.
    store, measured = Store(job.config.folder), [run.held_out for run in kept if run.held_out]
    there |= {stage.name for stage in measured if stage.model and not store.is_done(stage.model)}
    # An audit that results have, with all probes that are asked for, needs none of them again.
    if plan.audit and earlier.audits and {probe.name for probe in plan.audit.probes} <= earlier.stages.keys():
        there.add(plan.audit.name)
    return earlier, [stage for stage in plan.wanted(job.groups, job.arms) if stage.name not in there]


def _empty(config: ExperimentConfig) -> Results:
    """Results without a run."""
    design = {name: getattr(config, name) for name in Design.model_fields}
    arms = [Arm(name=a.name, title=a.title or a.name, group=a.group, seeds=config.seeds_of(a)) for a in config.all_arms]
    splits = config.evaluation.splits
    further = [
        Sampling(name=e.name, temperature=e.temperature, attempts=e.attempts, splits=e.tasks_of(config.evaluation))
        for e in config.evaluations
    ]
    return Results(
        **design,
        environment=config.environment.name,
        seeds=config.all_seeds,
        arms=arms,
        stages={},
        tasks={split: [] for split in splits},
        evaluations=further,
    )


def _check_folders(job: Job) -> None:
    """Raises `FolderInUseError` where the run folder or the results folder holds something else."""
    for folder, otherwise in {job.out: "--results", job.config.folder: "run folder"}.items():
        check_holds_run(folder, otherwise)


def _check_nothing_is_lost(job: Job, plan: Plan, store: Store, earlier: Results) -> None:
    """Raises `FolderInUseError` where the results have runs that are neither in the run folder, nor kept by `extend`, nor given up."""
    if job.replace or not has_results(job.out):
        return
    kept = set(_reusable(plan, earlier)) | {run.evaluation.name for run in plan.runs if store.is_done(run.evaluation)}
    there = [run.evaluation for arm in read_results(job.out).arms for run in arm.runs]
    if lost := [name for name in there if name not in kept]:
        why = "are of other settings" if job.extend else "were not made here; give --extend to keep them"
        raise FolderInUseError(
            f"{job.out / RESULTS}: {len(lost)} of its {len(there)} runs {why}; choose another --results, or --replace to give them up"
        )


def _write(job: Job, plan: Plan, earlier: Results) -> Results:
    """Gathers and writes what is done, where anything is."""
    results = gather(plan, Store(job.config.folder), earlier)
    if any(arm.runs for arm in results.arms):
        write_results(job.out, results)
        if job.out.resolve() != job.config.folder.resolve():
            write_json(job.out / CONFIG, job.config.portable(job.out), sort_keys=False)
    return results


# --- from stages to results


def _reusable(plan: Plan, earlier: Results) -> dict[str, Run]:
    """The runs of earlier results that are those of the plan, by their evaluation stage."""
    wanted = {run.evaluation.name for run in plan.runs}
    return {run.evaluation: run for arm in earlier.arms for run in arm.runs if run.evaluation in wanted}


def _beside(run: Run) -> list[str]:
    """The stages of a run that are neither of its model nor its first evaluation."""
    measured = [*run.sampled.values(), *([run.held_out] if run.held_out else [])]
    return [*([run.watched] if run.watched else []), *(each.stage for each in measured)]


def gather(plan: Plan, store: Store, earlier: Results | None = None) -> Results:
    """The results of all runs that are evaluated; those of `earlier` results stand in for what was not made here."""
    config, audit = plan.config, plan.audit
    earlier = earlier or _empty(config)
    known = _reusable(plan, earlier)
    runs = dict(_runs(plan, store, known))
    done = [run for run in plan.runs if run.evaluation.name in runs and store.is_done(run.evaluation)]
    audited = [*audit.probes, audit] if audit else []
    made = {stage.name: stage for run in done for stage in (*run.stages, run.evaluation)}
    beside = [stage for run in plan.runs for stage in (run.watched, *run.further.values(), run.held_out)]
    made |= {stage.name: stage for stage in (*audited, *beside) if stage and store.is_done(stage)}
    kept = {name for key, run in known.items() if key not in {r.evaluation.name for r in done} for name in [*run.stages, key]}
    kept |= {name for run in runs.values() for name in _beside(run) if name not in made}
    kept |= {stage.name for stage in audited if stage.name not in made and stage.name in earlier.stages}
    probed = store.found(plan.probe) if audit and store.is_done(plan.probe) else None
    model = Model(id=Path(config.model.path).name, parameters=probed.parameters, matmul=probed.matmul) if probed else earlier.model
    stages, machines = _stages(plan, store, made, kept, earlier, model.matmul if model else 0)
    routes = {}
    for route in {run.route.name: run.route for run in plan.runs if run.route and run.route.name in stages}.values():
        if store.is_done(route):
            routes[route.name] = store.found(route).scores
        elif route.name in earlier.routes:
            routes[route.name] = earlier.routes[route.name]
    empty = _empty(config)
    of_arms = {
        arm.name: [
            runs[run.evaluation.name].model_copy(update={"seed": run.seed})
            for run in plan.runs
            if run.arm.name == arm.name and run.evaluation.name in runs
        ]
        for arm in config.all_arms
    }
    found = {
        "created": earlier.created if stages == earlier.stages else datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "trajectories": probed.trajectories if probed else earlier.trajectories,
        "machines": machines,
        "arms": [arm.model_copy(update={"runs": of_arms[arm.name]}) for arm in empty.arms],
        "audits": store.found(audit).audits if audit and store.is_done(audit) else earlier.audits,
        "heat_map": probed.heat_map if probed else earlier.heat_map,
        "routes": routes,
        "stages": stages,
        "tasks": store.found(done[0].evaluation).tasks if done else earlier.tasks,
        "remarks": _of_tasks(done, store) if done else earlier.remarks,
        "curve_split": None if plan.curve_split == plan.main_split else plan.curve_split,
    }
    return Results.model_validate({**dict(empty), **found})


def _of_tasks(done: Sequence[PlannedRun], store: Store) -> list[str]:
    """What the environment says of the evaluations' tasks, each line once."""
    return list(dict.fromkeys(line for run in done for line in store.found(run.evaluation).remarks))


def _runs(plan: Plan, store: Store, known: Mapping[str, Run]) -> Iterator[tuple[str, Run]]:
    """The runs that are evaluated, by the name of their evaluation; those that are `known`, with what was added to them here."""
    for planned in plan.runs:
        name = planned.evaluation.name
        before = known.get(name)
        sampled = {key: kept for key, kept in (before.sampled if before else {}).items() if key in planned.further}
        sampled = {key: kept for key, kept in sampled.items() if kept.stage == planned.further[key].name}
        sampled |= {key: _sampled(stage, store) for key, stage in planned.further.items() if store.is_done(stage)}
        added = {"sampled": sampled, "held_out": _held_out(planned, store, before)}
        if store.is_done(planned.evaluation):
            yield name, _run(plan, planned, store).model_copy(update=added)
        elif before:
            # A curve on another split than today's would stand beside curves that it does not compare with.
            same = before.watched == (planned.watched.name if planned.watched else None)
            yield name, before.model_copy(update={**added, **({} if same else {"curve": [], "watched": None})})


def _run(plan: Plan, planned: PlannedRun, store: Store) -> Run:
    found, arm = store.found(planned.evaluation), planned.arm
    routed = store.found(planned.route) if planned.route else None
    moved = sum(store.found(stage).moved_to_sft for stage in planned.stages if isinstance(stage, Refresh))
    examples = sum(store.found(stage).examples for stage in planned.stages if isinstance(stage, Sft))
    watched = planned.watched if planned.watched and store.is_done(planned.watched) else None
    played = routed if arm.rl != "none" else None
    return Run(
        seed=planned.seed,
        success=found.success,
        score=found.score,
        ends=found.ends,
        parts=found.parts,
        n_sft=None if routed is None else routed.n_sft + moved if arm.sft == "routed" else examples,
        # With nothing left RL plays what it first had.
        n_rl=(played.n_rl - moved or played.n_rl) if played else 0 if routed else None,
        n_rl_by_chance=played.n_rl_by_chance if played else None,
        n_none=played.n_none or None if played else None,
        n_both=played.n_both or None if played else None,
        stages=[stage.name for stage in planned.stages],
        forward_only=[stage.name for stage in planned.forward_only],
        route=planned.route.name if planned.route else None,
        evaluation=planned.evaluation.name,
        curve=_curve(plan, planned, store, next(iter(found.success.values()))),
        watched=watched.name if watched else None,
    )


def _sampled(stage: Evaluate, store: Store) -> Sampled:
    """A further evaluation, with each task's mean score."""
    found, attempts = store.found(stage), stage.config.attempts
    scores = {split: np.reshape(values, (-1, attempts)).mean(1).round(4).tolist() for split, values in found.score.items()}
    return Sampled(stage=stage.name, success=found.success, score=scores)


def _held_out(planned: PlannedRun, store: Store, before: Run | None) -> HeldOut | None:
    """The loss on the demonstrations, measured here or known before; None where it is neither, or was one on others."""
    stage = planned.held_out
    if stage and store.is_done(stage):
        return HeldOut(stage=stage.name, **store.found(stage).model_dump())
    known = before.held_out if before else None
    return known if stage and known and known.stage == stage.name else None


def _curve(plan: Plan, planned: PlannedRun, store: Store, success: str) -> list[Point]:
    """Success while training on the curves' tasks, up to that of the model that was kept.

    The last point is that of the first evaluation, where the curves are on its first split, else of `watched`; without either, RL has
    ended with one of its own. Where RL kept its best weights, its own last point stays before.
    """
    model, config = planned.evaluation.model, plan.config.rl
    before = store.found(model).curve if isinstance(model, Rl) else []
    if plan.curve_split != plan.main_split:
        if planned.watched is None or not store.is_done(planned.watched):
            return before
        success = store.found(planned.watched).success[plan.curve_split]
    first = success[: config.evaluate_tasks]
    of_best = isinstance(model, Rl) and config.keep_best
    kind = "kept" if of_best else model.kind if model else "base"
    last = Point(stage=kind, fraction=1.0, success=first.count("1") / len(first), tasks=len(first))
    return [*(point for point in before if of_best or point.fraction < 1), last]


def _stages(
    plan: Plan, store: Store, made: Mapping[str, AnyStage], kept: set[str], earlier: Results, matmul: int
) -> tuple[dict[str, Stage], list[Machine]]:
    """The stages that were made here, and those that runs of earlier results have: what those cost stays what it was, though a stage
    of theirs was made again. And the machines that any of them is of.
    """
    of_earlier = earlier.machines or [Machine()]
    on: dict[str, tuple[Stage, Machine]] = {}
    for name, stage in made.items():
        if name not in kept:
            record = store.record(stage)
            own = {key: round(value, 2) for key, value in record.cost.model_dump().items()}
            own["flops"] = stage_flops(matmul, record.cost.tokens_forward, record.cost.tokens_backward)
            training = store.found(stage) if isinstance(stage, Sft | Rl) else None
            shown = Stage(
                **own,
                kind=stage.kind,
                evaluation_seconds=min(round(record.evaluation_seconds, 2), own["wall_seconds"]),
                history=training.history if training else [],
                warnings=training.warnings if training else [],
            )
            on[name] = (shown, record.machine.model_copy(update={"threads": plan.config.threads}))
    on |= {name: (earlier.stages[name], of_earlier[earlier.stages[name].machine]) for name in kept}
    used, machines = [machine for _, machine in on.values()], []
    for machine in [*of_earlier, *used]:
        if machine in used and machine not in machines:
            machines.append(machine)
    return {n: stage.model_copy(update={"machine": machines.index(machine)}) for n, (stage, machine) in on.items()}, machines
