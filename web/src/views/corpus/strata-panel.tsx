import { useMemo, useState } from "preact/hooks";
import { SIDES } from "../../core/cut";
import { csv, download, fileName } from "../../core/download";
import { type Filter, filterText, missingValue, toggled } from "../../core/filters";
import { count, percent } from "../../core/numbers";
import type { Stratum } from "../../core/split";
import { extent } from "../../core/statistics";
import { set } from "../../router";
import { Panel, Select } from "../../ui/parts";
import { Spark } from "../../ui/spark";
import type { CorpusState } from "./state";

const BINS = 32;
const FIRST = 12;

/** Task types, sources or quarters of a number: how each is divided by the cut. A click filters. */
export function StrataPanel({ state }: { state: CorpusState }) {
  const by = state.by.value;
  const strata = state.strata.value;
  const [all, setAll] = useState(false);
  const sorted = useMemo(
    () => (typeof strata[0]?.value === "string" ? [...strata].sort((a, b) => b.n - a.n) : strata),
    [strata],
  );
  const sparks = useSparks(state);
  const [start, end] = extent(state.ascending.value);
  const cut = state.cut.value;
  const placed = useMemo(
    () => ({ ...cut, at: cut.at.map((value) => (value - start) / (end - start || 1)) }),
    [cut, start, end],
  );
  const options = [...state.categories.value, ...state.numbers.value].map(
    (column) => [column.name, column.label] as const,
  );
  const label = state.label(by);
  const save = () => {
    const rows = sorted.map((stratum) => [stratum.label, stratum.n, ...stratum.sides]);
    download(
      `${fileName(`strata by ${by}`)}.csv`,
      csv([[by, "trajectories", "sft", "neither", "rl", "both"], ...rows]),
      "text/csv",
    );
  };
  const shown = all ? sorted : sorted.slice(0, FIRST);
  return (
    <Panel
      label="Strata"
      className="strata"
      title="Strata"
      tools={
        <>
          <Select label="by" value={by} options={options} onChange={(value) => set({ by: value }, true)} />
          <button type="button" class="button quiet small" onClick={save} title="Save as CSV">
            ⤓
          </button>
        </>
      }
    >
      <table class="facts strata-table">
        <thead>
          <tr>
            <th>{label}</th>
            <th>n</th>
            <th>RL</th>
            <th class="wide">SFT | RL</th>
            <th class="spark-head">{state.label(state.metric.value)}</th>
          </tr>
        </thead>
        <tbody>
          {shown.map((stratum) => {
            const filter = filterOf(by, stratum);
            const active = state.filters.value.some((other) => filterText([other]) === filterText([filter]));
            return (
              <tr key={stratum.label} class={active ? "active" : ""}>
                <th>
                  <button
                    type="button"
                    class="link"
                    aria-pressed={active}
                    title={`Filter: ${stratum.label}`}
                    onClick={() => state.setFilters(toggled(state.filters.value, filter))}
                  >
                    {stratum.label}
                  </button>
                </th>
                <td>{count(stratum.n)}</td>
                <td>{percent((stratum.sides[2] + stratum.sides[3]) / stratum.n, 0)}</td>
                <td class="wide">
                  <SideBar sides={stratum.sides} />
                </td>
                <td class="spark-cell">
                  <Spark counts={sparks.get(stratum.label)} cut={placed} />
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {sorted.length > FIRST && (
        <button type="button" class="button quiet small" onClick={() => setAll(!all)}>
          {all ? "Show fewer" : `Show all ${sorted.length}`}
        </button>
      )}
    </Panel>
  );
}

function SideBar({ sides }: { sides: readonly [number, number, number, number] }) {
  const n = sides[0] + sides[1] + sides[2] + sides[3];
  const title = `${count(sides[0])} SFT, ${sides[1] ? `${count(sides[1])} neither, ` : ""}${count(sides[2])} RL${sides[3] ? `, ${count(sides[3])} both` : ""}`;
  return (
    <div class="share-bar small" title={title}>
      {SIDES.map((side, i) => (
        <i key={side} class={side} style={{ width: `${(100 * sides[i]) / n}%` }} />
      ))}
    </div>
  );
}

/** Histograms of the score within each stratum; they do not change with the cut. */
function useSparks(state: CorpusState): ReadonlyMap<string, Uint32Array> {
  const division = state.division.value;
  const score = state.score.value;
  const ascending = state.ascending.value;
  return useMemo(() => {
    const result = new Map<string, Uint32Array>();
    if (!division || !score) return result;
    const [start, end] = extent(ascending);
    const bins = division.strata.map(() => new Uint32Array(BINS));
    const scale = BINS / (end - start || 1);
    for (let i = 0; i < score.data.length; i++) {
      const bin = Math.floor((score.data[i] - start) * scale);
      if (bin >= 0) bins[division.codes[i]][Math.min(BINS - 1, bin)]++;
    }
    division.strata.forEach(({ label }, i) => result.set(label, bins[i]));
    return result;
  }, [division, score, ascending]);
}

function filterOf(column: string, { value }: Stratum): Filter {
  if (value === null || typeof value === "string") return { kind: "in", column, values: [value ?? missingValue] };
  return { kind: "range", column, low: Number(value[0].toPrecision(7)), high: Number(value[1].toPrecision(7)) };
}
