import { useMemo } from "preact/hooks";
import { count, number, percent } from "../../core/numbers";
import { extent } from "../../core/statistics";
import { set } from "../../router";
import { Panel } from "../../ui/parts";
import { Strip } from "../../ui/strip";
import type { CorpusState } from "../corpus/state";

const BINS = 48;

/** Where a trajectory stands under every metric, and in plain measures. */
export function RanksPanel({ state, row }: { state: CorpusState; row: number }) {
  const { metrics } = state.corpus.meta;
  const known = metrics.filter((name) => state.corpus.numeric(name));
  const plain = ["loss", "l2", "n_response_tokens", "n_turns"].filter((name) => state.corpus.numeric(name));
  return (
    <Panel
      title="Ranks"
      label="Ranks"
      tools={<span class="muted">among {count(state.corpus.n)}, from the lowest</span>}
    >
      <table class="facts ranks">
        <tbody>
          {[...known, ...plain].map((name) => (
            <RankRow key={name} state={state} row={row} name={name} metric={known.includes(name)} />
          ))}
        </tbody>
      </table>
    </Panel>
  );
}

function RankRow({ state, row, name, metric }: { state: CorpusState; row: number; name: string; metric: boolean }) {
  const column = state.corpus.numeric(name)!;
  const sorted = state.sorted(column);
  const [low, high] = extent(sorted);
  const counts = useMemo(() => {
    const bins = new Uint32Array(BINS);
    for (const value of sorted) bins[Math.min(BINS - 1, Math.floor(((value - low) / (high - low || 1)) * BINS))]++;
    return bins;
  }, [sorted, low, high]);
  const value = column.data[row];
  const rank = state.corpus.ranks(name)[row];
  const cut = state.metric.value === name;
  const place = (at: number) => (at - low) / (high - low || 1);
  return (
    <tr class={cut ? "active" : ""}>
      <th>
        {metric ? (
          <button
            type="button"
            class="link"
            title={`Cut by ${column.label}: ${column.help ?? ""}`}
            onClick={() => set({ m: name, route: null, cut: null, sides: null, w: null, t: null, order: null }, true)}
          >
            {column.label}
          </button>
        ) : (
          <span class="muted">{column.label}</span>
        )}
      </th>
      <td>{number(value)}</td>
      <td class="spark-cell">
        <Strip counts={counts} at={place(value)} cuts={cut ? state.cut.value.at.map(place) : []} />
      </td>
      <td title={`rank ${number(rank)} of ${count(sorted.length)}`}>{count(rank)}</td>
      <td>{percent((rank - 0.5) / sorted.length, 0)}</td>
    </tr>
  );
}
