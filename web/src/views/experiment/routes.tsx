import { useCallback, useMemo } from "preact/hooks";
import type { ResultsView, RouteHistogram } from "../../api";
import { count, number, percent } from "../../core/numbers";
import { drawAxes, frameOf } from "../../plots/axes";
import { type Draw, Figure } from "../../plots/figure";
import { drawHeatMap, type HeatMapData, heatHeight } from "../../plots/heatmap";
import { linear } from "../../plots/scales";
import { Panel } from "../../ui/parts";
import { Key } from "./page";

/** Where each route cut its scores. */
export function RoutesPanel({ results }: { results: ResultsView }) {
  return (
    <Panel
      title="Routes"
      label="Routes"
      tools={
        <span class="legend">
          <Key name="SFT" colour="sft" />
          <Key name="RL" colour="rl" />
        </span>
      }
    >
      <div class="multiples">
        {Object.entries(results.routes).map(([name, route]) => (
          <RouteFigure key={name} name={name} route={route} of={results.name} />
        ))}
      </div>
    </Panel>
  );
}

function RouteFigure({ name, route, of }: { name: string; route: RouteHistogram; of: string }) {
  const draw = useCallback<Draw>(
    (p, c) => {
      const frame = frameOf(p.width, p.height, { left: 44, top: 8, right: 12, bottom: 38 });
      const most = Math.max(1, ...route.sft.map((n, i) => n + route.rl[i]));
      const x = linear([route.start, route.start + route.width * route.sft.length], [frame.left, frame.right]);
      const y = linear([0, most], [frame.bottom, frame.top]);
      drawAxes(p, c, frame, { x, y, xLabel: route.metric });
      route.sft.forEach((sft, i) => {
        const [left, right] = [x(route.start + i * route.width), x(route.start + (i + 1) * route.width) - 1];
        p.rect(left, y(sft), right - left, frame.bottom - y(sft), c.sft);
        p.rect(left, y(sft + route.rl[i]), right - left, y(sft) - y(sft + route.rl[i]), c.rl);
      });
      p.line([x(route.threshold), frame.top, x(route.threshold), frame.bottom], c.text, 1.5);
    },
    [route],
  );
  const [sft, rl] = [route.sft, route.rl].map((bins) => bins.reduce((sum, n) => sum + n, 0));
  const rows = () => [
    ["from", "sft", "rl"],
    ...route.sft.map((n, i) => [route.start + i * route.width, n, route.rl[i]]),
  ];
  return (
    <div class="multiple">
      <h3>
        {name}{" "}
        <span class="muted">
          {count(sft)} to SFT, {count(rl)} to RL, cut at {number(route.threshold)}
        </span>
      </h3>
      <Figure
        title={`Route ${name} of ${of}`}
        description={`${count(sft)} to SFT, ${count(rl)} to RL.`}
        height={170}
        draw={draw}
        rows={rows}
      />
      {Object.keys(route.task_types).length > 0 && (
        <table class="facts">
          <tbody>
            {Object.entries(route.task_types).map(([type, [toSft, toRl]]) => (
              <tr key={type}>
                <th>{type}</th>
                <td>{count(toSft + toRl)}</td>
                <td class="wide">
                  <div class="share-bar small" title={`${count(toSft)} SFT, ${count(toRl)} RL`}>
                    <i class="sft" style={{ width: `${(100 * toSft) / Math.max(1, toSft + toRl)}%` }} />
                    <i class="rl" style={{ width: `${(100 * toRl) / Math.max(1, toSft + toRl)}%` }} />
                  </div>
                </td>
                <td>{percent(toRl / Math.max(1, toSft + toRl), 0)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}

export function HeatPanel({ results }: { results: ResultsView }) {
  const map = results.heat_map!;
  const data = useMemo<HeatMapData>(
    () => ({
      rows: map.layers.map(String),
      columns: map.kinds,
      values: map.mean_norms,
      rowLabel: "layer",
      centre: null,
      reach: Math.max(...map.mean_norms.flat().map((value) => value ?? 0)),
      text: (value) => number(value, 2),
    }),
    [map],
  );
  const draw = useCallback<Draw>((p, c) => drawHeatMap(p, c, data), [data]);
  const rows = () => [["layer", ...map.kinds], ...map.layers.map((layer, i) => [layer, ...map.mean_norms[i]])];
  return (
    <Panel title="Gradient norms, means over the corpus" label="Gradient norms">
      <Figure
        title={`Mean gradient norms of ${results.name}`}
        description={`${map.layers.length} layers, ${map.kinds.length} kinds of matrices.`}
        height={heatHeight(map.layers.length)}
        draw={draw}
        rows={rows}
      />
    </Panel>
  );
}
