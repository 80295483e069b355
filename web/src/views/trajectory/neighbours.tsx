import { useEffect, useMemo, useState } from "preact/hooks";
import { type Problem, paths } from "../../api";
import { SIDES } from "../../core/cut";
import { number } from "../../core/numbers";
import { decodeColumns, type NumberArray, type NumericColumn } from "../../source/columns";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Loading, Panel, ProblemNotice, SideMark } from "../../ui/parts";
import { trajectoryLink } from "../corpus/open";
import type { CorpusState } from "../corpus/state";

const MOST = 5;
const BOTH = SIDES.indexOf("both"); // which is on each side

/** The trajectories whose gradients lie most alike, on both sides of the cut. */
export function NeighboursPanel({ state, row }: { state: CorpusState; row: number }) {
  const { id, version } = state.corpus.meta;
  const [distances, setDistances] = useState<NumberArray | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    let current = true;
    source.bytes(paths.distances(id, row, version)).then(
      (bytes) => current && setDistances((decodeColumns(bytes).columns[0] as NumericColumn).data),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, version, row]);
  const sides = state.sides.value;
  const near = useMemo(
    () => (distances ? ([0, 2] as const).map((side) => nearest(distances, sides, side, row)) : null),
    [distances, sides, row],
  );
  return (
    <Panel title="Nearest by gradient" label="Nearest by gradient">
      {problem && <ProblemNotice problem={problem} />}
      {!near && !problem && <Loading what="distances" />}
      {near?.map((rows, i) => (
        <table class="facts neighbours" key={i}>
          <thead>
            <tr>
              <th>
                <SideMark side={i === 0 ? "sft" : "rl"} />
              </th>
              <th>distance</th>
              <th>{state.label(state.metric.value)}</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((other) => (
              <tr key={other}>
                <th>
                  <a class="mono" href={trajectoryLink(state, other)}>
                    {state.corpus.shortId(other)}
                  </a>
                  <TaskType type={state.corpus.category("task_type", other)} id={state.corpus.id(other)} />
                </th>
                <td>{number(distances![other], 3)}</td>
                <td>{number(state.score.value?.data[other])}</td>
              </tr>
            ))}
          </tbody>
        </table>
      ))}
      <p class="fine">
        Euclidean distance between profiles: shares of the norms, less the corpus's mean and over its standard
        deviation.
      </p>
    </Panel>
  );
}

/** The task's type, where the id does not say it. */
function TaskType({ type, id }: { type: string | null; id: string }) {
  return type === null || id.includes(type) ? null : <small class="muted">{type}</small>;
}

function nearest(distances: NumberArray, sides: Uint8Array, side: number, self: number): number[] {
  const best: number[] = [];
  for (let i = 0; i < distances.length; i++) {
    if (i === self || (sides[i] !== side && sides[i] !== BOTH) || Number.isNaN(distances[i])) continue;
    if (best.length === MOST && distances[i] >= distances[best[MOST - 1]]) continue;
    best.push(i);
    best.sort((a, b) => distances[a] - distances[b]);
    if (best.length > MOST) best.pop();
  }
  return best;
}
