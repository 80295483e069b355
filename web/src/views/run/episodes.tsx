import { useEffect, useMemo, useState } from "preact/hooks";
import { type Episode, type EpisodeList, type Problem, paths } from "../../api";
import { agentNames } from "../../core/agents";
import { csv, download } from "../../core/download";
import { count, number, percent } from "../../core/numbers";
import { go, link, param, params, set } from "../../router";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Folded } from "../../ui/folded";
import { Grid, type GridColumn } from "../../ui/grid";
import { Head } from "../../ui/head";
import { Loading, Panel, ProblemNotice, Select } from "../../ui/parts";
import { useRun } from "./page";

/** The episodes of an evaluation: a table, and one of them step by step. */
export function EpisodesPage({
  id,
  evaluation,
  episode,
}: {
  id: string;
  evaluation: string;
  episode: string | undefined;
}) {
  const { run, problem: runProblem } = useRun(id);
  const [list, setList] = useState<EpisodeList | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    let current = true;
    source.json<EpisodeList>(paths.episodes(id, evaluation)).then(
      (found) => current && setList(found),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, evaluation, run?.version]);
  const failed = problem ?? runProblem;
  if (failed)
    return (
      <main class="page">
        <ProblemNotice problem={failed} />
      </main>
    );
  if (!list || !run) return <Loading what="the episodes" />;
  const agent = run.evaluations.find((other) => other.id === evaluation)?.agent ?? "";
  const name = agentNames(run).get(agent) ?? evaluation;
  const n = episode === undefined ? null : Number(episode);
  return (
    <main class="page">
      <Head title={`Episodes of ${name}`} facts={[`${count(list.n)} episodes`, run.name]} />
      <EpisodesView {...{ list, id, evaluation }} n={n !== null && n >= 0 && n < list.n ? n : null} />
    </main>
  );
}

function EpisodesView({
  list,
  id,
  evaluation,
  n,
}: {
  list: EpisodeList;
  id: string;
  evaluation: string;
  n: number | null;
}) {
  const { columns } = list;
  const [split, type, outcome, q] = [param("split"), param("type"), param("outcome"), param("q")?.toLowerCase()];
  const sortText = param("sort") ?? "n";
  const sort = { name: sortText.replace(/^-/, ""), down: sortText.startsWith("-") };
  const rows = useMemo(() => {
    const shown = Uint32Array.from({ length: list.n }, (_, i) => i).filter(
      (i) =>
        (!split || columns.split[i] === split) &&
        (!type || columns.task_type[i] === type) &&
        (!outcome ||
          (outcome === "success"
            ? columns.success[i]
            : outcome === "failure"
              ? !columns.success[i]
              : columns.stop_reason[i] === outcome)) &&
        (!q || columns.id[i].toLowerCase().includes(q)),
    );
    const values = columns[sort.name as keyof typeof columns] as
      | readonly (string | number | boolean | null)[]
      | undefined;
    const sign = sort.down ? -1 : 1;
    return values
      ? shown.sort((a, b) => sign * compare(values[a], values[b]) || a - b)
      : sort.down
        ? shown.reverse()
        : shown;
  }, [list, split, type, outcome, q, sort.name, sort.down]);
  const open = (row: number) => go(["run", id, "episodes", evaluation, String(row)], params.value);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (n === null || /^(INPUT|TEXTAREA|SELECT)$/.test((event.target as Element).tagName)) return;
      const at = rows.indexOf(n);
      if (event.key === "j" && at >= 0 && at + 1 < rows.length) open(rows[at + 1]);
      else if (event.key === "k" && at > 0) open(rows[at - 1]);
      else if (event.key === "u") go(["run", id, "episodes", evaluation], params.value);
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  });
  const grid = useMemo(
    (): GridColumn[] => [
      { key: "n", label: "#", width: "48px", numeric: true, render: (i) => i },
      {
        key: "success",
        label: "",
        title: "success",
        width: "30px",
        render: (i) => (
          <span class={columns.success[i] ? "ok" : "muted"} title={columns.success[i] ? "success" : "failure"}>
            {columns.success[i] ? "✓" : "✗"}
          </span>
        ),
      },
      {
        key: "id",
        label: "task",
        width: "minmax(160px, 3fr)",
        render: (i) => <span class="mono">{columns.id[i]}</span>,
      },
      { key: "task_type", label: "type", width: "minmax(80px, 1fr)", render: (i) => columns.task_type[i] ?? "–" },
      { key: "score", label: "score", width: "64px", numeric: true, render: (i) => number(columns.score[i], 3) },
      { key: "steps", label: "steps", width: "58px", numeric: true, render: (i) => columns.steps[i] },
      { key: "invalid", label: "refused", width: "66px", numeric: true, render: (i) => columns.invalid[i] },
      { key: "stop_reason", label: "end", width: "84px", render: (i) => columns.stop_reason[i] },
    ],
    [columns],
  );
  const nSuccess = rows.reduce((sum, i) => sum + Number(columns.success[i]), 0);
  const choices = (values: readonly (string | null)[]) => [
    ["", "all"] as const,
    ...[...new Set(values)].flatMap((value) => (value ? [[value, value] as const] : [])),
  ];
  const save = () =>
    download(
      "episodes.csv",
      csv([Object.keys(columns), ...Array.from(rows, (i) => Object.values(columns).map((values) => values[i]))]),
      "text/csv",
    );
  return (
    <div class={n === null ? "" : "columns reading"}>
      <div class={n === null ? "" : "second"}>
        <Panel
          label="Episodes"
          className="table"
          title={
            <>
              Episodes{" "}
              <span class="count">
                {rows.length < list.n ? `${count(rows.length)} of ${count(list.n)}` : count(list.n)},{" "}
                {percent(nSuccess / Math.max(1, rows.length))} succeed
              </span>
            </>
          }
          tools={
            <button type="button" class="button quiet small" title="Save the shown rows as CSV" onClick={save}>
              ⤓
            </button>
          }
        >
          <div class="filter-bar">
            <input
              type="search"
              placeholder="Search tasks"
              aria-label="Search tasks"
              value={param("q") ?? ""}
              onInput={(event) => set({ q: event.currentTarget.value })}
            />
            <Select
              label="split"
              value={split ?? ""}
              options={choices(columns.split)}
              onChange={(value) => set({ split: value }, true)}
            />
            <Select
              label="type"
              value={type ?? ""}
              options={choices(columns.task_type)}
              onChange={(value) => set({ type: value }, true)}
            />
            <Select
              label="outcome"
              value={outcome ?? ""}
              options={choices(["success", "failure", ...columns.stop_reason])}
              onChange={(value) => set({ outcome: value }, true)}
            />
          </div>
          <Grid
            label="Episodes"
            rows={rows}
            columns={n === null ? grid : grid.filter((column) => FEW.includes(column.key))}
            minWidth={n === null ? undefined : "20rem"}
            sort={sort}
            onSort={(name) => set({ sort: sort.name === name && !sort.down ? `-${name}` : name }, true)}
            onOpen={open}
            maxHeight={n === null ? "max(360px, 72vh)" : "max(360px, 80vh)"}
            empty="No episode passes these filters."
          />
        </Panel>
      </div>
      {n !== null && <EpisodeView key={n} {...{ id, evaluation, n }} />}
    </div>
  );
}

const FEW = ["n", "success", "id", "score", "steps"]; // columns beside an open episode

function compare(a: string | number | boolean | null, b: string | number | boolean | null): number {
  if (a === b) return 0;
  if (a === null) return 1;
  if (b === null) return -1;
  return a < b ? -1 : 1;
}

function EpisodeView({ id, evaluation, n }: { id: string; evaluation: string; n: number }) {
  const [episode, setEpisode] = useState<Episode | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    let current = true;
    source.json<Episode>(paths.episode(id, evaluation, n)).then(
      (found) => current && setEpisode(found),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, evaluation, n]);
  if (problem) return <ProblemNotice problem={problem} />;
  if (!episode) return <Loading what="the episode" />;
  const parts = Object.entries(episode.parts);
  return (
    <div class="first">
      <Panel
        label="Episode"
        title={
          <>
            <span class="mono">{episode.id}</span>{" "}
            <span class={episode.success ? "ok" : "muted"}>{episode.success ? "success" : "no success"}</span>
          </>
        }
        tools={
          <a
            class="button small"
            href={link(["run", id, "episodes", evaluation], params.value)}
            title="Back to all (u)"
          >
            Close
          </a>
        }
      >
        <p class="fine">
          {[episode.task_type, episode.split, `ended by ${episode.stop_reason}`, `${count(episode.steps.length)} steps`]
            .filter(Boolean)
            .join(" · ")}
        </p>
        {episode.failure && <ProblemNotice problem={{ message: episode.failure, hint: "" }} />}
        <dl class="reward">
          <div>
            <dt>score</dt>
            <dd>{number(episode.score)}</dd>
          </div>
          <div>
            <dt>reward</dt>
            <dd>{number(episode.reward)}</dd>
          </div>
          {parts.map(([name, value]) => (
            <div key={name}>
              <dt>{name.replaceAll("_", " ")}</dt>
              <dd>{number(value)}</dd>
            </div>
          ))}
        </dl>
        <ol class="turns steps-list">
          {episode.steps.map((step, i) => (
            <li key={i} class={`step ${step.valid ? "" : "refused"}`}>
              <div class="step-number">{i + 1}</div>
              <div>
                <Folded text={step.observation} className="text observation" first={1200} />
                <div class="action">
                  <Folded text={step.action} first={1200} />
                  {!step.valid && <span class="tag bad">refused</span>}
                  {step.reward !== 0 && <span class="tag">reward {number(step.reward)}</span>}
                </div>
              </div>
            </li>
          ))}
          {episode.observation && (
            <li class="step">
              <div class="step-number">end</div>
              <div>
                <Folded text={episode.observation} className="text observation" first={1200} />
              </div>
            </li>
          )}
        </ol>
        {Object.keys(episode.details).length > 0 && (
          <details>
            <summary>The environment's account</summary>
            <Folded text={JSON.stringify(episode.details, null, 1)} />
          </details>
        )}
      </Panel>
    </div>
  );
}
