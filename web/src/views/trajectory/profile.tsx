import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Problem, type Profiles, paths, type Trajectory, type Unit } from "../../api";
import { number } from "../../core/numbers";
import { type Draw, Figure } from "../../plots/figure";
import { drawHeatMap, type HeatMapData, heatCell, heatHeight } from "../../plots/heatmap";
import { param, set } from "../../router";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Panel, ProblemNotice, Select } from "../../ui/parts";
import type { CorpusState } from "../corpus/state";

const KINDS = [
  ["difference", "share minus corpus mean"],
  ["deviations", "in standard deviations"],
  ["norm", "norm"],
] as const;

/** Where the gradient lies: layer by matrix, against the corpus. */
export function ProfilePanel({ state, trajectory }: { state: CorpusState; trajectory: Trajectory }) {
  const { id, version, units } = state.corpus.meta;
  const [profiles, setProfiles] = useState<Profiles | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const kind = KINDS.find(([name]) => name === param("heat"))?.[0] ?? "difference";
  useEffect(() => {
    let current = true;
    source.json<Profiles>(paths.profile(id, version)).then(
      (found) => current && setProfiles(found),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, version]);
  const values = useMemo(() => {
    if (kind === "norm" || !profiles) return trajectory.norms;
    const { mean, std } = profiles;
    const scale = trajectory.norms.length / (trajectory.norms.reduce((sum, norm) => sum + norm, 0) || 1);
    const less = trajectory.norms.map((norm, i) => norm * scale - mean[i]);
    return kind === "difference" ? less : less.map((value, i) => (std[i] ? value / std[i] : 0));
  }, [kind, trajectory, profiles]);
  const choose = (value: string) => set({ heat: value === "difference" ? null : value }, true);
  return (
    <Panel
      title="Gradient"
      label="Gradient"
      tools={<Select hideLabel label="Show" value={kind} options={KINDS} onChange={choose} />}
    >
      {problem && <ProblemNotice problem={problem} />}
      {profiles && (
        <UnitMap
          title={`Gradient of ${trajectory.id}, ${KINDS.find(([name]) => name === kind)![1]}`}
          units={units}
          values={values}
          centred={kind !== "norm"}
        />
      )}
      {kind !== "norm" && (
        <p class="fine">A matrix's share of the gradient norms, times their number: 1 where all are alike.</p>
      )}
    </Panel>
  );
}

export function UnitMap({
  title,
  units,
  values,
  centred,
}: {
  title: string;
  units: readonly Unit[];
  values: readonly number[];
  centred: boolean;
}) {
  const width = useRef(0);
  const [over, setOver] = useState("");
  const data = useMemo(() => heatData(units, values, centred), [units, values, centred]);
  const height = heatHeight(data.rows.length);
  const draw = useCallback<Draw>((p, c) => drawHeatMap(p, c, data), [data]);
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);
  const onPointer = (_: PointerEvent, x: number, y: number) => {
    const cell = heatCell(data, width.current, height, x, y);
    const value = cell && data.values[cell[0]][cell[1]];
    setOver(cell ? `layer ${data.rows[cell[0]]}, ${data.columns[cell[1]]}: ${number(value, 3)}` : "");
  };
  const extremes = [...values.keys()].sort((a, b) => values[b] - values[a]);
  const name = (i: number) => `${units[i].matrix} of layer ${units[i].layer} (${number(values[i], 2)})`;
  const said = extremes.length ? `highest: ${name(extremes[0])}; lowest: ${name(extremes[extremes.length - 1])}` : "";
  return (
    <Figure
      title={title}
      description={said}
      height={height}
      draw={draw}
      onPointer={onPointer}
      onLeave={() => setOver("")}
      onSize={onSize}
      rows={() => [["matrix", "layer", "value"], ...units.map((unit, i) => [unit.matrix, unit.layer, values[i]])]}
    >
      <div class="readout">{over || said}</div>
    </Figure>
  );
}

function heatData(units: readonly Unit[], values: readonly number[], centred: boolean): HeatMapData {
  const layers = [...new Set(units.map((unit) => unit.layer))].sort((a, b) => a - b);
  const matrices = [...new Set(units.map((unit) => unit.matrix))];
  const grid: (number | null)[][] = layers.map(() => matrices.map(() => null));
  // Several matrices of one name in a layer, as experts have them, are one cell: their mean.
  const many = new Map<string, number[]>();
  units.forEach((unit, i) => {
    const key = `${layers.indexOf(unit.layer)} ${matrices.indexOf(unit.matrix)}`;
    many.set(key, [...(many.get(key) ?? []), values[i]]);
  });
  for (const [key, of] of many) {
    const [row, column] = key.split(" ").map(Number);
    grid[row][column] = of.reduce((a, b) => a + b, 0) / of.length;
  }
  const sizes = grid.flat().flatMap((value) => (value === null ? [] : [Math.abs(value)]));
  return {
    rows: layers.map(String),
    columns: matrices,
    values: grid,
    rowLabel: "layer",
    centre: centred ? 0 : null,
    reach: Math.max(...sizes, 1e-12),
    text: (value) => number(value, 2),
  };
}
