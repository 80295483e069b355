import { useEffect, useState } from "preact/hooks";
import { type Evaluation, type Problem, paths, type RunView, type Stage, type SuccessRow } from "../../api";
import { agentNames, inOrder } from "../../core/agents";
import { quoted } from "../../core/commands";
import { count, duration, number, percent, short } from "../../core/numbers";
import { type Draw, Figure } from "../../plots/figure";
import { drawIntervals, type IntervalRow, intervalsHeight } from "../../plots/intervals";
import { link, param, set } from "../../router";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { type Palette, palette } from "../../theme";
import { Head } from "../../ui/head";
import { Loading, Notice, Panel, ProblemNotice, Select } from "../../ui/parts";
import { runEntry } from "../folders";
import { TrainingPanel } from "./training";

/** A run: asked again whenever its folder changes, so that what is written appears. */
export function useRun(id: string): { run: RunView | null; problem: Problem | null } {
  const [run, setRun] = useState<RunView | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const version = runEntry(id)?.version;
  useEffect(() => {
    let current = true;
    source.json<RunView>(paths.run(id)).then(
      (found) => {
        if (!current) return;
        setProblem(null);
        setRun(found);
      },
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, version]);
  return { run: run?.id === id ? run : null, problem };
}

export function RunPage({ id }: { id: string }) {
  const { run, problem } = useRun(id);
  if (!run)
    return problem ? (
      <main class="page">
        <ProblemNotice problem={problem} />
      </main>
    ) : (
      <Loading what="the run" />
    );
  const wall = run.stages.reduce((sum, stage) => sum + (stage.wall_seconds ?? 0), 0);
  const commands = [
    { label: "Look at it again", text: `gradprism studio ${quoted(run.path)}` },
    { label: "Tables, in a shell", text: `gradprism report ${quoted(run.path)}` },
  ];
  return (
    <main class="page">
      <Head
        title={run.name}
        facts={[run.state, `${run.stages.length} stages`, wall ? `${duration(wall)} in all` : ""]}
        commands={commands}
      >
        {run.corpora.map((corpus) => (
          <a key={corpus.id} class="button" href={link(["corpus", corpus.id])}>
            {run.corpora.length === 1 ? "Corpus" : corpus.name.split("/").at(-1)}
          </a>
        ))}
        {run.results && (
          <a class="button" href={link(["experiment", run.results])}>
            Results
          </a>
        )}
      </Head>
      {problem && <ProblemNotice problem={problem} />}
      {run.warnings.map((line) => (
        <Notice key={line}>{line}</Notice>
      ))}
      {run.stages.length > 0 && <Stages stages={run.stages} />}
      {run.evaluations.length > 0 && <Success run={run} />}
      {run.trainings.map((training) => (
        <TrainingPanel key={training.id} run={run} training={training} />
      ))}
      {run.config !== null && (
        <Panel label="Configuration">
          <details>
            <summary>Configuration, as it was resolved</summary>
            <pre class="text">{typeof run.config === "string" ? run.config : JSON.stringify(run.config, null, 1)}</pre>
          </details>
        </Panel>
      )}
    </main>
  );
}

const LEDGER: readonly (readonly [string, keyof Stage, (value: number | null) => string])[] = [
  ["wall clock", "wall_seconds", duration],
  ["processor", "cpu_seconds", duration],
  ["GPU", "gpu_seconds", duration],
  ["FLOPs", "flops", short],
  ["tokens forward", "tokens_forward", short],
  ["backward", "tokens_backward", short],
  ["generated", "tokens_generated", short],
  ["env. steps", "environment_steps", short],
  ["peak memory", "peak_memory_mib", (value) => (value === null ? "–" : `${count(value)} MiB`)],
  ["of GPU", "peak_gpu_memory_mib", (value) => (value === null ? "–" : `${count(value)} MiB`)],
];

/** The stages with their ledger; of a running one how far it is. */
function Stages({ stages }: { stages: readonly Stage[] }) {
  const columns = LEDGER.filter(([, key]) => stages.some((stage) => Boolean(stage[key])));
  return (
    <Panel title="Stages" label="Stages">
      <div class="wide-table">
        <table class="facts stages">
          <thead>
            <tr>
              <th>stage</th>
              <th class="wide">outcome</th>
              {columns.map(([label]) => (
                <th key={label}>{label}</th>
              ))}
            </tr>
          </thead>
          <tbody>
            {stages.map((stage) => (
              <tr key={stage.name}>
                <th>
                  <span class={`dot ${stage.state}`} title={stage.state} /> {stage.kind}
                  <small class="muted mono">
                    {stage.name === stage.kind ? "" : stage.name.replace(`${stage.kind}-`, "").slice(0, 10)}
                  </small>
                </th>
                <td class="wide">
                  {stage.state === "running" && <Progress stage={stage} />}
                  {stage.state === "stopped" && <span class="tag">stopped</span>} {stage.headline}
                </td>
                {columns.map(([label, key, text]) => (
                  <td key={label}>{text(stage[key] as number | null)}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function Progress({ stage }: { stage: Stage }) {
  const { progress } = stage;
  if (!progress) return <span class="live">running</span>;
  const { done, total, unit } = progress;
  return (
    <span class="progress">
      <progress value={done} max={total ?? undefined} aria-label={`${stage.kind} progress`} />
      {count(done)}
      {total === null ? "" : ` of ${count(total)}`} {unit}
    </span>
  );
}

/** Success of the evaluated models, with 95 % intervals. */
function Success({ run }: { run: RunView }) {
  const splits = [...new Set(run.evaluations.flatMap((evaluation) => evaluation.rows.map((row) => row.split)))];
  const split = splits.includes(param("split") ?? "") ? param("split")! : splits[0];
  const measure = param("measure") === "score" ? "score" : "success";
  const types = [
    ...new Set(run.evaluations.flatMap((e) => e.rows.filter((row) => row.split === split).map((row) => row.task_type))),
  ];
  const evaluations = inOrder(run);
  const names = agentNames(run);
  const colourOf = (agent: string) => (c: Palette) =>
    agent === "base" ? c.muted : agent.startsWith("sft") ? c.sft : agent.startsWith("rl") ? c.rl : c.accent;
  const rowOf = (evaluation: Evaluation, type: string) =>
    evaluation.rows.find((row) => row.split === split && row.task_type === type);
  const rows = types.map((type, i): IntervalRow => {
    const marks = evaluations.map((evaluation) => {
      const row = rowOf(evaluation, type);
      if (!row) return null;
      const [low, high] = measure === "score" ? [row.score_low, row.score_high] : [row.low, row.high];
      return { mean: row[measure], low, high, colour: colourOf(evaluation.agent) };
    });
    const last = rowOf(evaluations[evaluations.length - 1], type);
    return {
      ...{ label: type === "all" ? "all tasks" : type, marks, bold: type === "all", apart: i === 1 },
      note: last
        ? `${names.get(evaluations[evaluations.length - 1].agent)} ${percent(last[measure])} of ${count(last.episodes)}`
        : "",
    };
  });
  const draw: Draw = (p, c) =>
    drawIntervals(p, c, {
      ...{ rows, label: `${measure} in ${split}, 95 % intervals`, text: (v) => percent(v, 0), include: [0] },
      labelWidth: Math.min(220, p.width * 0.4),
    });
  return (
    <Panel
      title="Success"
      label="Success"
      tools={
        <>
          <Select
            label="split"
            value={split}
            options={splits.map((name) => [name, name] as const)}
            onChange={(value) => set({ split: value }, true)}
          />
          <Select
            hideLabel
            label="measure"
            value={measure}
            options={[
              ["success", "success"],
              ["score", "score"],
            ]}
            onChange={(value) => set({ measure: value === "success" ? null : value }, true)}
          />
        </>
      }
    >
      <Figure
        title={`${measure} in ${split} of ${run.name}`}
        description={describeRows(run, split)}
        height={intervalsHeight(rows)}
        draw={draw}
        rows={() => successRows(run)}
      />
      <div class="wide-table">
        <table class="facts">
          <thead>
            <tr>
              <th>evaluation</th>
              <th>episodes</th>
              <th>success</th>
              <th>score</th>
              <th>steps</th>
              <th>refused</th>
              <th>out of steps</th>
              <th>cut</th>
              <th>failures</th>
              <th />
            </tr>
          </thead>
          <tbody>
            {evaluations.map((evaluation) => {
              const row = rowOf(evaluation, "all");
              return (
                <tr key={evaluation.id}>
                  <th title={evaluation.agent}>
                    <i class="key" style={{ background: colourOf(evaluation.agent)(palette.value) }} />
                    {names.get(evaluation.agent)}
                  </th>
                  <td>
                    {count(evaluation.episodes)}
                    {evaluation.total !== null &&
                      evaluation.total !== evaluation.episodes &&
                      ` of ${count(evaluation.total)}`}
                  </td>
                  <td>{row ? `${percent(row.success)} [${percent(row.low, 0)}, ${percent(row.high, 0)}]` : "–"}</td>
                  <td>{row ? percent(row.score) : "–"}</td>
                  <td>{number(row?.mean_steps, 3)}</td>
                  <td>{percent(row?.invalid_share, 0)}</td>
                  <td>{count(row?.out_of_steps)}</td>
                  <td>{count(row?.cut_by_context)}</td>
                  <td>{count(row?.failures)}</td>
                  <td>
                    <a href={link(["run", run.id, "episodes", evaluation.id])}>episodes</a>
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      {run.evaluations
        .flatMap((evaluation) => evaluation.remarks)
        .filter((line, i, all) => all.indexOf(line) === i)
        .map((line) => (
          <p class="fine" key={line}>
            {line}
          </p>
        ))}
    </Panel>
  );
}

function describeRows(run: RunView, split: string): string {
  const all = (rows: readonly SuccessRow[]) => rows.find((row) => row.split === split && row.task_type === "all");
  return run.evaluations
    .flatMap((e) => (all(e.rows) ? [`${e.agent} ${percent(all(e.rows)!.success)}`] : []))
    .join(", ");
}

function* successRows(run: RunView) {
  yield ["agent", "split", "task_type", "episodes", "success", "low", "high", "score", "score_low", "score_high"];
  for (const evaluation of run.evaluations) {
    for (const row of evaluation.rows) {
      yield [
        evaluation.agent,
        row.split,
        row.task_type,
        row.episodes,
        row.success,
        row.low,
        row.high,
        row.score,
        row.score_low,
        row.score_high,
      ];
    }
  }
}
