"""Runs an experiment: every arm with every seed, and then gathers what was found as `results.json`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gradprism.environments.pool import default_workers
from gradprism.experiments.config import ExperimentConfig
from gradprism.experiments.costs import stage_flops
from gradprism.experiments.plan import Plan, PlannedRun, plan_experiment
from gradprism.experiments.results import (
    RESULTS,
    Arm,
    Machine,
    Model,
    Point,
    Results,
    Run,
    Stage,
    has_results,
    read_results,
    write_results,
)
from gradprism.experiments.schedule import Status, run_stages, status
from gradprism.experiments.stage import STAGES, AnyStage, Store
from gradprism.experiments.stages import Refresh, Rl, Sft
from gradprism.runtime.errors import FolderInUseError, MissingFileError
from gradprism.runtime.files import is_temporary, read_json, write_json

CONFIG = "config.json"
README = "README.md"  # of a results folder, written by hand


@dataclass(frozen=True)
class Job:
    """The arms and seeds to run, and the results folder.

    `jobs`: stages at once, each in a process of its own; None for one after another in this process. `groups`: only the arms of these.
    `extend`: keep the runs that the results already have. `replace`: give up those of other settings. `fresh`: make again what other
    code made.
    """

    config: ExperimentConfig
    out: Path
    jobs: int | None = None
    groups: tuple[str, ...] = ()
    extend: bool = False
    replace: bool = False
    fresh: bool = False


def run_job(job: Job) -> Results:
    """Runs what is not done, and writes `results.json` and `config.json` into the results folder; returns the results.

    What is done when a stage fails is written all the same. Raises `FolderInUseError` where one of the folders holds something else, or
    the results folder runs that this would lose, unless it is to `replace` them.
    """
    for folder in {job.config.folder, job.out}:
        _check_is_ours(folder)
    plan, earlier, wanted = _prepare(job)
    store, config = Store(job.config.folder, job.fresh), job.config
    if not job.replace:
        _check_nothing_is_lost(job.out, plan, store, earlier)
    if wanted:
        write_json(store.folder / CONFIG, config.model_dump(mode="json"), sort_keys=False)
    try:
        run_stages(store, wanted, plan.labels, job.jobs, config.threads)
    except FolderInUseError:  # another command runs it, and will write the results
        raise
    except BaseException:
        _write(job, plan, earlier)
        raise
    return _write(job, plan, earlier)


def job_status(job: Job) -> Status:
    """The stages that are done, running and pending; trains nothing."""
    plan, _, wanted = _prepare(job)
    return status(Store(job.config.folder, job.fresh), wanted, plan.labels, job.jobs or default_workers())


def _prepare(job: Job) -> tuple[Plan, Results | None, list[AnyStage]]:
    """The plan, the results that are extended, and the stages that are wanted."""
    if job.extend and not has_results(job.out):
        raise MissingFileError(f"{job.out / RESULTS}: no such file, so there is nothing to extend")
    earlier = read_results(job.out) if job.extend else None
    plan = plan_experiment(job.config)
    there = set(reusable(plan, earlier))
    # An audit that results have, with all probes that are asked for, needs none of them again.
    audited = plan.audit and earlier and earlier.audits and _probes(plan) <= earlier.stages.keys()
    return plan, earlier, plan.wanted(job.groups, [*there, *([plan.audit.name] if plan.audit and audited else [])])


def _check_is_ours(folder: Path) -> None:
    """Raises `FolderInUseError` for a folder of anything but a run or its results: a model's `config.json` would be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise FolderInUseError(f"{folder}: exists and is not a folder; choose another run folder")
    names = {path.name for path in folder.iterdir() if not is_temporary(path.name)} if folder.is_dir() else set()
    if not names - {README} or names & {RESULTS, STAGES}:
        return
    config = read_json(folder / CONFIG) if CONFIG in names else None
    if not (isinstance(config, dict) and "corpus" in config):
        raise FolderInUseError(f"{folder}: is in use and holds no run; choose another run folder")


def _probes(plan: Plan) -> set[str]:
    return {probe.name for probe in (plan.audit.probe, *plan.audit.others)} if plan.audit else set()


def _check_nothing_is_lost(out: Path, plan: Plan, store: Store, earlier: Results | None) -> None:
    """Raises `FolderInUseError` where `out` has runs that are neither in the run folder nor kept by `extend`."""
    if not has_results(out):
        return
    kept = set(reusable(plan, earlier)) | {run.evaluation.name for run in plan.runs if store.is_done(run.evaluation)}
    there = [run.evaluation for arm in read_results(out).arms for run in arm.runs]
    if lost := [name for name in there if name not in kept]:
        why = "were not made here; give --extend to keep them" if earlier is None else "are of other settings"
        raise FolderInUseError(
            f"{out / RESULTS}: {len(lost)} of its {len(there)} runs {why}; choose another --results, or --replace to give them up"
        )


def _write(job: Job, plan: Plan, earlier: Results | None) -> Results:
    """Gathers and writes what is done, where anything is."""
    results = gather(job.config, plan, Store(job.config.folder), earlier)
    if earlier and results.stages == earlier.stages:  # nothing was made
        results = results.model_copy(update={"created": earlier.created})
    if any(arm.runs for arm in results.arms):
        write_results(job.out, results)
        if job.out.resolve() != job.config.folder.resolve():
            write_json(job.out / CONFIG, job.config.portable(job.out), sort_keys=False)
    return results


# --- from stages to results


def reusable(plan: Plan, earlier: Results | None) -> dict[str, Run]:
    """The runs of earlier results that are those of the plan, by their evaluation stage."""
    wanted = {run.evaluation.name for run in plan.runs}
    runs = [run for arm in earlier.arms for run in arm.runs] if earlier else []
    return {run.evaluation: run for run in runs if run.evaluation in wanted}


def gather(config: ExperimentConfig, plan: Plan, store: Store, earlier: Results | None = None) -> Results:
    """The results of all runs that are evaluated; those of `earlier` results stand in for what was not made here."""
    runs, known = dict(_runs(config, plan, store)), reusable(plan, earlier)
    done_runs = [run for run in plan.runs if run.evaluation.name in runs]
    made = {stage.name: stage for run in done_runs for stage in (*run.stages, run.evaluation)}
    probe, audit = plan.probe, plan.audit
    made |= {stage.name: stage for stage in _audit_stages(plan) if store.is_done(stage)}
    kept = {name for key, run in known.items() if key not in runs for name in [*run.stages, key]}
    kept |= {stage.name for stage in _audit_stages(plan) if stage.name not in made and earlier and stage.name in earlier.stages}
    found = store.found(probe) if probe and store.is_done(probe) else None
    model = earlier.model if earlier else None
    if found:
        model = Model(id=Path(config.model.path).name, parameters=found.parameters, matmul=found.matmul)
    stages, machines = _stages(config, store, made, model.matmul if model else 0, kept, earlier)
    tasks = (
        store.found(done_runs[0].evaluation).tasks
        if done_runs
        else earlier.tasks
        if earlier
        else {split: [] for split in config.evaluation.splits}
    )
    audited = audit is not None and store.is_done(audit)
    routes = {run.route.name: run.route for run in plan.runs if run.route and run.route.name in stages}
    of_earlier = earlier.routes if earlier else {}
    return Results(
        name=config.name,
        environment=config.environment.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        trajectories=found.trajectories if found else earlier.trajectories if earlier else None,
        machines=machines,
        seeds=config.all_seeds,
        base_arm=config.base_arm,
        sft_arm=config.sft_arm,
        full_rl_arm=config.full_rl_arm,
        reference_arms=config.reference_arms,
        regime=config.regime,
        claims=config.claims,
        sweeps=config.sweeps,
        arms=[
            Arm(
                name=arm.name,
                title=arm.title or arm.name,
                group=arm.group,
                seeds=config.seeds_of(arm),
                runs=[
                    run.model_copy(update={"seed": planned.seed})
                    for planned in plan.runs
                    if planned.arm.name == arm.name
                    and (run := runs.get(planned.evaluation.name) or known.get(planned.evaluation.name))
                ],
            )
            for arm in config.all_arms
        ],
        audits=store.found(audit).audits if audit and audited else earlier.audits if earlier else {},
        heat_map=found.heat_map if found else earlier.heat_map if earlier else None,
        routes={
            name: store.found(route).scores if store.is_done(route) else of_earlier[name]
            for name, route in routes.items()
            if store.is_done(route) or name in of_earlier
        },
        stages=stages,
        tasks=tasks,
    )


def _audit_stages(plan: Plan) -> list[AnyStage]:
    return [plan.audit.probe, *plan.audit.others, plan.audit] if plan.audit else []


def _runs(config: ExperimentConfig, plan: Plan, store: Store) -> Iterator[tuple[str, Run]]:
    """The runs that are evaluated, by the name of their evaluation."""
    for planned in plan.runs:
        if not store.is_done(planned.evaluation):
            continue
        found = store.found(planned.evaluation)
        routed = store.found(planned.route) if planned.route else None
        moved = sum(store.found(stage).moved_to_sft for stage in planned.stages if isinstance(stage, Refresh))
        yield (
            planned.evaluation.name,
            Run(
                seed=planned.seed,
                success=found.success,
                score=found.score,
                n_sft=routed.n_sft + moved if routed else None,
                n_rl=(routed.n_rl - moved or routed.n_rl) if routed else None,  # with nothing left RL plays what it first had
                n_rl_by_chance=routed.n_rl_by_chance if routed else None,
                stages=[stage.name for stage in planned.stages],
                forward_only=[stage.name for stage in planned.forward_only],
                route=planned.route.name if planned.route else None,
                evaluation=planned.evaluation.name,
                curve=_curve(config, planned, store, next(iter(found.success.values()))),
            ),
        )


def _curve(config: ExperimentConfig, planned: PlannedRun, store: Store, success: str) -> list[Point]:
    """Success while training, on the first tasks of the first split; the last point is that of the final evaluation."""
    model, first = planned.evaluation.model, success[: config.rl.evaluate_tasks]
    final, n = first.count("1") / len(first), len(first)
    kind = model.kind if model else "base"
    before = store.found(model).curve if isinstance(model, Rl) else []
    return [*(point for point in before if point.fraction < 1), Point(stage=kind, fraction=1.0, success=final, tasks=n)]


def _stages(
    config: ExperimentConfig, store: Store, made: Mapping[str, AnyStage], matmul: int, kept: set[str], earlier: Results | None
) -> tuple[dict[str, Stage], list[Machine]]:
    """The stages that were made here, and those that runs of earlier results have: what those cost stays what it was, though a stage
    of theirs was made again. And the machines that any of them is of.
    """
    before = earlier.stages if earlier else {}
    of_earlier = (earlier.machines or [Machine()]) if earlier else []
    on: dict[str, tuple[Stage, Machine]] = {}
    for name, stage in made.items():
        if name not in kept:
            record = store.record(stage)
            own = {key: round(value, 2) for key, value in record.cost.model_dump().items()}
            own["flops"] = stage_flops(matmul, record.cost.tokens_forward, record.cost.tokens_backward)
            history = store.found(stage).history if isinstance(stage, Sft | Rl) else []
            evaluating = round(record.evaluation_seconds, 2)
            shown = Stage(**own, kind=stage.kind, evaluation_seconds=evaluating, history=history)
            on[name] = (shown, record.machine.model_copy(update={"threads": config.threads}))
    on |= {name: (before[name], of_earlier[before[name].machine]) for name in kept}
    machines = [machine for machine in of_earlier if any(machine == m for _, m in on.values())]
    machines += [m for i, (_, m) in enumerate(on.values()) if m not in machines and m not in [o for _, o in list(on.values())[:i]]]
    stages = {name: stage.model_copy(update={"machine": machines.index(machine)}) for name, (stage, machine) in on.items()}
    return stages, machines
