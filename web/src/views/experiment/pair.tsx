import { useMemo } from "preact/hooks";
import type { ResultsView } from "../../api";
import { csv, download } from "../../core/download";
import { count, percent } from "../../core/numbers";
import { param, set } from "../../router";
import { Grid, type GridColumn } from "../../ui/grid";
import { Panel, Select } from "../../ui/parts";

interface TaskRow {
  id: string;
  type: string;
  /** Share of seeds that succeed. */
  a: number;
  b: number;
  seedsA: string;
  seedsB: string;
}

/** Two arms side by side, task by task. */
export function PairPanel({ results, split }: { results: ResultsView; split: string }) {
  const arms = results.arms.filter((arm) => arm.outcomes[split]?.length);
  const names = arms.map((arm) => arm.name);
  const first = names.includes(param("better") ?? "")
    ? param("better")!
    : (names.find((name) => /gini|prism/.test(name)) ?? names[0]);
  const second = names.includes(param("worse") ?? "")
    ? param("worse")!
    : (names.find((name) => /random/.test(name) && name !== first) ?? names.find((name) => name !== first) ?? first);
  const only = param("task");
  const rows = useMemo(() => taskRows(results, split, first, second), [results, split, first, second]);
  const types = useMemo(() => byType(rows), [rows]);
  const shown = useMemo(
    () =>
      Uint32Array.from(rows.keys())
        .filter((i) => !only || rows[i].type === only)
        .sort((p, q) => Math.abs(rows[q].a - rows[q].b) - Math.abs(rows[p].a - rows[p].b) || p - q),
    [rows, only],
  );
  const title = (name: string) => arms.find((arm) => arm.name === name)?.title ?? name;
  const columns = useMemo(
    (): GridColumn[] => [
      {
        key: "id",
        label: "task",
        width: "minmax(160px, 3fr)",
        sortable: false,
        render: (i) => <span class="mono">{rows[i].id}</span>,
      },
      { key: "type", label: "type", width: "minmax(90px, 1fr)", sortable: false, render: (i) => rows[i].type },
      {
        key: "a",
        label: "first",
        title: "one mark a seed",
        width: "90px",
        sortable: false,
        render: (i) => <Marks outcomes={rows[i].seedsA} />,
      },
      {
        key: "b",
        label: "second",
        title: "one mark a seed",
        width: "90px",
        sortable: false,
        render: (i) => <Marks outcomes={rows[i].seedsB} />,
      },
      {
        key: "d",
        label: "difference",
        width: "90px",
        numeric: true,
        sortable: false,
        render: (i) => signed(rows[i].a - rows[i].b),
      },
    ],
    [rows],
  );
  if (arms.length < 2) return null;
  const options = arms.map((arm) => [arm.name, arm.title] as const);
  const better = rows.filter((row) => row.a > row.b).length;
  const worse = rows.filter((row) => row.a < row.b).length;
  const save = () =>
    download(
      "pair.csv",
      csv([["task", "type", first, second], ...rows.map((row) => [row.id, row.type, row.a, row.b])]),
      "text/csv",
    );
  return (
    <Panel
      label="Two arms, task by task"
      className="table"
      title={<span id="pair">Two arms, task by task</span>}
      tools={
        <>
          <Select label="first" value={first} options={options} onChange={(value) => set({ better: value }, true)} />
          <Select label="second" value={second} options={options} onChange={(value) => set({ worse: value }, true)} />
          <button type="button" class="button quiet small" title="Save as CSV" onClick={save}>
            ⤓
          </button>
        </>
      }
    >
      <p class="fine">
        {`Of ${count(rows.length)} tasks ${title(first)} does better in ${count(better)}, ${title(second)} in ${count(worse)}; alike in ${count(rows.length - better - worse)}.`}
      </p>
      <div class="columns">
        <div>
          <table class="facts">
            <thead>
              <tr>
                <th>task type</th>
                <th>tasks</th>
                <th>first</th>
                <th>second</th>
                <th>difference</th>
              </tr>
            </thead>
            <tbody>
              {types.map(({ type, n, a, b }) => (
                <tr key={type} class={only === type ? "active" : ""}>
                  <th>
                    <button
                      type="button"
                      class="link"
                      aria-pressed={only === type}
                      onClick={() => set({ task: only === type ? null : type }, true)}
                    >
                      {type}
                    </button>
                  </th>
                  <td>{count(n)}</td>
                  <td>{percent(a)}</td>
                  <td>{percent(b)}</td>
                  <td>{signed(a - b)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
        <div>
          <Grid label="Tasks" rows={shown} columns={columns} maxHeight="340px" minWidth="30rem" empty="No tasks." />
        </div>
      </div>
    </Panel>
  );
}

function Marks({ outcomes }: { outcomes: string }) {
  const n = [...outcomes].filter((outcome) => outcome === "1").length;
  return (
    <span class="marks" title={`${n} of ${outcomes.length} succeed`}>
      {[...outcomes].map((outcome, i) => (
        <i key={i} class={outcome === "1" ? "yes" : "no"} />
      ))}
    </span>
  );
}

const signed = (value: number): string => `${value > 0 ? "+" : ""}${percent(value, 0)}`;

function taskRows(results: ResultsView, split: string, first: string, second: string): TaskRow[] {
  const outcomes = (name: string) => results.arms.find((arm) => arm.name === name)?.outcomes[split] ?? [];
  const [a, b] = [outcomes(first), outcomes(second)];
  const share = (seeds: string) => [...seeds].filter((outcome) => outcome === "1").length / Math.max(1, seeds.length);
  return results.tasks[split].map((task, i) => {
    const [seedsA, seedsB] = [a, b].map((runs) => runs.map((run) => run.success[i] ?? "").join(""));
    return { id: task.id, type: task.task_type ?? "–", a: share(seedsA), b: share(seedsB), seedsA, seedsB };
  });
}

function byType(rows: readonly TaskRow[]) {
  const groups = Map.groupBy(rows, (row) => row.type);
  const mean = (values: number[]) => values.reduce((s, v) => s + v, 0) / Math.max(1, values.length);
  return [...groups]
    .map(([type, of]) => ({ type, n: of.length, a: mean(of.map((row) => row.a)), b: mean(of.map((row) => row.b)) }))
    .sort((p, q) => Math.abs(q.a - q.b) - Math.abs(p.a - p.b));
}
