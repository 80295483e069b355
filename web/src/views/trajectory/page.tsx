import { useEffect, useState } from "preact/hooks";
import { type Problem, paths, type Trajectory } from "../../api";
import { quoted } from "../../core/commands";
import { SIDES } from "../../core/cut";
import { count, number } from "../../core/numbers";
import { go, link, param, params, set } from "../../router";
import { isText } from "../../source/columns";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Head } from "../../ui/head";
import { Loading, Notice, Panel, ProblemNotice, Segments, SideMark } from "../../ui/parts";
import { openTrajectory, trajectoryLink } from "../corpus/open";
import { WithCorpus } from "../corpus/page";
import type { CorpusState } from "../corpus/state";
import { Conversation } from "./conversation";
import { NeighboursPanel } from "./neighbours";
import { ProfilePanel } from "./profile";
import { RanksPanel } from "./ranks";
import { TokensView } from "./tokens";

export function TrajectoryPage({ id, trajectory }: { id: string; trajectory: string }) {
  return (
    <WithCorpus id={id}>
      {(state) => {
        const row = state.corpus.row(trajectory);
        if (row === undefined) {
          const problem = {
            message: `${state.corpus.meta.name}: no trajectory ${trajectory}`,
            hint: "go back to the corpus and choose one",
          };
          return (
            <main class="page">
              <ProblemNotice problem={problem} />
              <a href={link(["corpus", id])}>To the corpus</a>
            </main>
          );
        }
        return <TrajectoryView state={state} row={row} key={row} />;
      }}
    </WithCorpus>
  );
}

function TrajectoryView({ state, row }: { state: CorpusState; row: number }) {
  const { meta } = state.corpus;
  const [trajectory, setTrajectory] = useState<Trajectory | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    let current = true;
    source.json<Trajectory>(paths.trajectory(meta.id, row, meta.version)).then(
      (found) => current && setTrajectory(found),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [meta.id, meta.version, row]);
  useKeys(state, row);
  const id = state.corpus.id(row);
  const view = param("view") === "tokens" ? "tokens" : "turns";
  const side = SIDES[state.sides.value[row]];
  const reason = state.routeColumns.value.get("reason");
  const why = reason && isText(reason) ? reason.at(row) : "";
  const score = state.score.value;
  return (
    <main class="page">
      <Head
        title={
          <>
            <span class="mono">{id}</span> <SideMark side={side} />
          </>
        }
        facts={facts(state, row)}
        commands={commands(state, id, row)}
      >
        <Steps state={state} row={row} />
      </Head>
      {why && <Notice kind="info">Overridden by hand: {why}</Notice>}
      {trajectory?.note && <Notice>{trajectory.note}</Notice>}
      {problem && <ProblemNotice problem={problem} />}
      <div class="columns reading">
        <Panel
          label="Conversation"
          title="Conversation"
          tools={
            <Segments
              label="Show"
              value={view}
              options={[
                ["turns", "Turns"],
                ["tokens", "As the model reads it"],
              ]}
              onChange={(value) => set({ view: value === "turns" ? null : value }, true)}
            />
          }
        >
          {view === "tokens" ? (
            <TokensView state={state} row={row} />
          ) : trajectory ? (
            <Conversation state={state} trajectory={trajectory} />
          ) : (
            !problem && <Loading what="the conversation" />
          )}
        </Panel>
        <aside>
          {score && state.cut.value.at.length > 0 && (
            <Where name={state.label(score.name)} value={score.data[row]} cuts={state.cut.value.at} />
          )}
          <RanksPanel state={state} row={row} />
          {trajectory && trajectory.norms.length > 0 && <ProfilePanel state={state} trajectory={trajectory} />}
          {meta.units.length > 0 && <NeighboursPanel state={state} row={row} />}
          {trajectory && <TaskPanel trajectory={trajectory} />}
        </aside>
      </div>
    </main>
  );
}

/** How far a score is from the nearest cut. */
function Where({ name, value, cuts }: { name: string; value: number; cuts: readonly number[] }) {
  const nearest = [...cuts].sort((a, b) => Math.abs(a - value) - Math.abs(b - value))[0];
  return (
    <p class="where">
      {name} <strong>{number(value)}</strong>, {number(Math.abs(value - nearest), 3)}{" "}
      {value > nearest ? "above" : "below"} the cut at {number(nearest)}
    </p>
  );
}

function facts(state: CorpusState, row: number): string[] {
  const at = (name: string) => state.corpus.numeric(name)?.data[row];
  const value = (name: string, word: string) => (at(name) === undefined ? "" : `${count(at(name))} ${word}`);
  return [
    state.corpus.category("task_type", row) ?? "",
    value("n_turns", "turns"),
    value("n_tokens", "tokens"),
    value("n_response_tokens", "of responses"),
    at("loss") === undefined ? "" : `loss ${number(at("loss"))}`,
  ];
}

function commands(state: CorpusState, id: string, row: number) {
  const { path } = state.corpus.meta;
  return [
    {
      label: "Its norms, in Python",
      text: `import gradprism as gp\n\nprobe = gp.Probe.load(${JSON.stringify(path)})\nprobe.norms[${row}]  # ${id}`,
    },
    { label: "Open the corpus, in a shell", text: `gradprism studio ${quoted(path)}` },
  ];
}

/** To the trajectory before and after it, as the table is filtered and sorted. */
function Steps({ state, row }: { state: CorpusState; row: number }) {
  const { before, after, at, n } = around(state, row);
  return (
    <nav class="steps" aria-label="In the table's order">
      {before === null ? (
        <span class="button" aria-disabled="true">
          ←
        </span>
      ) : (
        <a class="button" href={trajectoryLink(state, before)} title="Before it (k)" aria-label="Before it">
          ←
        </a>
      )}
      <span class="muted">{at < 0 ? "not among the shown" : `${count(at + 1)} of ${count(n)}`}</span>
      {after === null ? (
        <span class="button" aria-disabled="true">
          →
        </span>
      ) : (
        <a class="button" href={trajectoryLink(state, after)} title="After it (j)" aria-label="After it">
          →
        </a>
      )}
    </nav>
  );
}

function around(state: CorpusState, row: number) {
  const rows = state.rows.value;
  const at = rows.indexOf(row);
  return {
    at,
    n: rows.length,
    before: at > 0 ? rows[at - 1] : null,
    after: at >= 0 && at + 1 < rows.length ? rows[at + 1] : null,
  };
}

function useKeys(state: CorpusState, row: number): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (
        /^(INPUT|TEXTAREA|SELECT)$/.test((event.target as Element).tagName) ||
        event.ctrlKey ||
        event.metaKey ||
        event.altKey
      )
        return;
      const { before, after } = around(state, row);
      if (event.key === "j" && after !== null) openTrajectory(state, after);
      else if (event.key === "k" && before !== null) openTrajectory(state, before);
      else if (event.key === "u") go(["corpus", state.corpus.meta.id], { ...params.value, view: null });
      else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, [state, row]);
}

function TaskPanel({ trajectory }: { trajectory: Trajectory }) {
  const entries = Object.entries(trajectory.task);
  if (entries.length === 0 && trajectory.tools.length === 0) return null;
  return (
    <Panel title="Task" label="Task">
      {entries.length > 0 && (
        <dl class="pairs">
          {entries.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd class="mono">{typeof value === "string" ? value : JSON.stringify(value)}</dd>
            </div>
          ))}
        </dl>
      )}
      {trajectory.tools.length > 0 && (
        <details>
          <summary>{trajectory.tools.length} tools</summary>
          <pre class="text">{JSON.stringify(trajectory.tools, null, 1)}</pre>
        </details>
      )}
    </Panel>
  );
}
