import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import type { ArmView, ResultsView } from "../../api";
import { count, duration, number, percent, short } from "../../core/numbers";
import { drawAxes, fitted, frameOf } from "../../plots/axes";
import { type Draw, Figure } from "../../plots/figure";
import { linear, padded } from "../../plots/scales";
import { param, set } from "../../router";
import { Panel, Select } from "../../ui/parts";
import { armColour } from "./page";

const KINDS = [
  ["cpu_seconds", "processor time"],
  ["wall_seconds", "wall clock"],
  ["flops", "FLOPs"],
] as const;
type Kind = (typeof KINDS)[number][0];
const HEIGHT = 320;

/** What each arm cost against what it reached. */
export function CostPanel({ results, split }: { results: ResultsView; split: string }) {
  const kind = (KINDS.find(([name]) => name === param("cost"))?.[0] ?? "cpu_seconds") as Kind;
  const label = KINDS.find(([name]) => name === kind)![1];
  const [hover, setHover] = useState<number | null>(null);
  const width = useRef(0);
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);
  const arms = useMemo(
    () => results.arms.filter((arm) => arm.success[split] && (arm.cost?.[kind] ?? 0) > 0),
    [results, split, kind],
  );
  const most = Math.max(0, ...arms.map((arm) => arm.cost![kind]));
  const [unit, unitName] =
    kind === "flops" ? [1, ""] : most < 300 ? [1, ", s"] : most < 5400 ? [60, ", min"] : [3600, ", h"];
  const scales = useCallback(
    (w: number) => {
      const frame = frameOf(w, HEIGHT, { left: 54, top: 10, right: 16, bottom: 40 });
      const costs = arms.map((arm) => arm.cost![kind] / unit);
      const ends = arms.flatMap((arm) => [arm.success[split].low, arm.success[split].high]);
      return {
        frame,
        x: linear(padded(0, Math.max(...costs)), [frame.left, frame.right]),
        y: linear(padded(Math.min(...ends), Math.max(...ends)), [frame.bottom, frame.top]),
      };
    },
    [arms, kind, split, unit],
  );
  const draw = useCallback<Draw>(
    (p, c) => {
      const { frame, x, y } = scales(p.width);
      drawAxes(p, c, frame, {
        x,
        y,
        xLabel: label + unitName,
        yLabel: `success in ${split}`,
        yText: (v) => percent(v, 0),
      });
      for (const arm of arms) {
        const { mean, low, high } = arm.success[split];
        const at = x(arm.cost![kind] / unit);
        p.line([at, y(low), at, y(high)], `${armColour(arm)(c)}66`, 1.5);
        p.circle(at, y(mean), 4, armColour(arm)(c), c.panel);
      }
      // Names where there is room: those of arms before them, and points, are not written over.
      const taken: [number, number, number][] = [];
      for (const arm of arms.filter((other) => other.group === arms[0].group)) {
        const [at, mean] = [x(arm.cost![kind] / unit), y(arm.success[split].mean)];
        const text = fitted(arm.title, 150);
        const size = text.length * 5.8;
        const start = at + 8 + size > frame.right ? at - 8 - size : at + 8;
        if (taken.some(([a, b, row]) => Math.abs(row - mean) < 11 && start < b && start + size > a)) continue;
        taken.push([start, start + size, mean]);
        p.text(text, start, mean, { fill: c.text, baseline: "middle", halo: c.panel, size: 10 });
      }
    },
    [scales, arms, kind, label, split, unit, unitName],
  );
  const overlay = useCallback<Draw>(
    (p, c) => {
      if (hover === null || !arms[hover]) return;
      const { x, y } = scales(p.width);
      p.circle(
        x(arms[hover].cost![kind] / unit),
        y(arms[hover].success[split].mean),
        6,
        armColour(arms[hover])(c),
        c.text,
      );
    },
    [hover, arms, scales, kind, split, unit],
  );
  const onPointer = (_: PointerEvent, px: number, py: number) => {
    const { x, y } = scales(width.current);
    const distances = arms.map((arm) => Math.hypot(x(arm.cost![kind] / unit) - px, y(arm.success[split].mean) - py));
    const best = distances.indexOf(Math.min(...distances));
    setHover(distances[best] < 20 ? best : null);
  };
  if (results.arms.every((arm) => arm.cost === null)) return null;
  return (
    <Panel
      title="Costs"
      label="Costs"
      tools={
        <Select
          hideLabel
          label="Cost"
          value={kind}
          options={KINDS}
          onChange={(value) => set({ cost: value === "cpu_seconds" ? null : value }, true)}
        />
      }
    >
      {arms.length > 0 && (
        <Figure
          title={`Success in ${split} against ${label} of ${results.name}`}
          description={arms.map((arm) => `${arm.title}: ${percent(arm.success[split].mean)}`).join(", ")}
          height={HEIGHT}
          {...{ draw, overlay, onPointer, onSize }}
          onLeave={() => setHover(null)}
          rows={() => [
            ["arm", kind, "success", "low", "high"],
            ...arms.map((arm) => [
              arm.title,
              arm.cost![kind],
              arm.success[split].mean,
              arm.success[split].low,
              arm.success[split].high,
            ]),
          ]}
        >
          <div class="readout">{hover === null ? "Point at an arm." : saying(arms[hover], split)}</div>
        </Figure>
      )}
      <details>
        <summary>All costs</summary>
        <div class="wide-table">
          <table class="facts">
            <thead>
              <tr>
                <th>arm</th>
                <th>to SFT</th>
                <th>to RL</th>
                <th>wall clock</th>
                <th>speed-up</th>
                <th>processor</th>
                <th>choosing</th>
                <th>FLOPs</th>
                <th>speed-up</th>
                <th>peak</th>
              </tr>
            </thead>
            <tbody>
              {results.arms.map((arm) => (
                <tr key={arm.name}>
                  <th>{arm.title}</th>
                  <td>{count(arm.n_sft)}</td>
                  <td>{count(arm.n_rl)}</td>
                  <td>{duration(arm.cost?.wall_seconds)}</td>
                  <td>{times(arm.cost?.speedup_wall)}</td>
                  <td>{duration(arm.cost?.cpu_seconds)}</td>
                  <td>{duration(arm.cost?.choosing_wall_seconds)}</td>
                  <td>{short(arm.cost?.flops)}</td>
                  <td>{times(arm.cost?.speedup_flops)}</td>
                  <td class="nowrap">{arm.cost ? `${count(arm.cost.peak_memory_mib)} MiB` : "–"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </Panel>
  );
}

const times = (value: number | null | undefined): string =>
  value === null || value === undefined ? "–" : `${value.toFixed(2)}×`;

function saying(arm: ArmView, split: string): string {
  const { mean, low, high } = arm.success[split];
  return `${arm.title}: ${percent(mean)} [${number(100 * low, 3)}, ${number(100 * high, 3)}], ${duration(arm.cost?.cpu_seconds)} of processors, ${duration(arm.cost?.wall_seconds)}`;
}
