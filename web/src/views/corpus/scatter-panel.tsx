import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { SIDES } from "../../core/cut";
import { toggled } from "../../core/filters";
import { thinned } from "../../core/geometry";
import { number } from "../../core/numbers";
import { byQuarter } from "../../core/split";
import { correlation, extent } from "../../core/statistics";
import { sideColours } from "../../plots/colours";
import { type Draw, Figure } from "../../plots/figure";
import { padded } from "../../plots/scales";
import { drawScatter, positions, type ScatterData, scatterFrame, scatterScales } from "../../plots/scatter";
import { param, set } from "../../router";
import type { NumericColumn } from "../../source/columns";
import { palette } from "../../theme";
import { Panel, Select } from "../../ui/parts";
import { openTrajectory } from "./open";
import type { CorpusState } from "./state";

const HEIGHT = 380;
const NEAR = 12; // pixels

/** Any two columns against each other; a lasso filters, a click opens. */
export function ScatterPanel({ state }: { state: CorpusState }) {
  const metric = state.metric.value;
  const numbers = state.numbers.value;
  const xName = param("x") && state.numeric(param("x")!) ? param("x")! : metric;
  const yName =
    param("y") && state.numeric(param("y")!)
      ? param("y")!
      : (["loss", "n_response_tokens"].find((n) => n !== xName && state.numeric(n)) ?? metric);
  const colourBy = param("c") ?? "side";
  const options = numbers.map((column) => [column.name, column.label] as const);
  const colours = [
    ["side", "side"] as const,
    ...[...state.categories.value, ...numbers].map((column) => [column.name, column.label] as const),
  ];
  const [x, y] = [state.numeric(xName), state.numeric(yName)];
  return (
    <Panel
      label="Scatter"
      className="scatter"
      title="Scatter"
      tools={
        <>
          <Select label="x" value={xName} options={options} onChange={(value) => set({ x: value }, true)} />
          <Select label="y" value={yName} options={options} onChange={(value) => set({ y: value }, true)} />
          <Select
            label="colour"
            value={colourBy}
            options={colours}
            onChange={(value) => set({ c: value === "side" ? null : value }, true)}
          />
        </>
      }
    >
      {x && y && <Scatter {...{ state, x, y, colourBy }} />}
    </Panel>
  );
}

function Scatter({
  state,
  x,
  y,
  colourBy,
}: {
  state: CorpusState;
  x: NumericColumn;
  y: NumericColumn;
  colourBy: string;
}) {
  const rows = state.shownRows.value;
  const cuts = state.cut.value.at;
  const metric = state.metric.value;
  const { group, colours, legend } = useGroups(state, colourBy);
  const [lasso, setLasso] = useState<number[]>([]);
  const [hover, setHover] = useState<number | null>(null);
  const size = useRef<readonly [number, number]>([0, HEIGHT]);
  const onSize = useCallback((w: number, h: number) => {
    size.current = [w, h];
  }, []);
  const data = useMemo<ScatterData>(() => {
    return {
      ...{ x: x.data, y: y.data, rows, group, colours },
      xLabel: x.label,
      yLabel: y.label,
      xDomain: padded(...extent(x.data)),
      yDomain: padded(...extent(y.data)),
      xCuts: x.name === metric ? cuts : [],
      yCuts: y.name === metric ? cuts : [],
    };
  }, [x, y, rows, group, colours, cuts, metric]);
  const rho = useMemo(
    () =>
      state.corpus.columns.value.has(x.name) && state.corpus.columns.value.has(y.name)
        ? correlation(state.corpus.ranks(x.name), state.corpus.ranks(y.name))
        : null,
    [x, y],
  );
  const polygon = state.filters.value.find(
    (filter) => filter.kind === "lasso" && filter.x === x.name && filter.y === y.name,
  );
  const draw = useCallback<Draw>((p, c) => drawScatter(p, c, data), [data]);
  const overlay = useCallback<Draw>(
    (p, c) => {
      const scales = scatterScales(data, p.width, p.height);
      const corners =
        polygon?.kind === "lasso" ? polygon.polygon.map((v, i) => (i % 2 ? scales.y(v) : scales.x(v))) : lasso;
      if (corners.length >= 4) {
        p.polygon(corners, c.accent, 0.1);
        p.line([...corners, corners[0], corners[1]], c.accent, 1.5, [4, 3]);
      }
      if (hover !== null) p.circle(scales.x(x.data[hover]), scales.y(y.data[hover]), 5, c.panel, c.text);
    },
    [data, lasso, polygon, hover, x, y],
  );
  const place = useMemo(() => ({ at: null as null | ReturnType<typeof positions>, size: size.current }), [data]);

  const nearest = (px: number, py: number): number | null => {
    if (!place.at || place.size !== size.current) {
      place.at = positions(data, ...size.current);
      place.size = size.current;
    }
    let [best, distance] = [-1, NEAR * NEAR];
    for (let i = 0; i < rows.length; i++) {
      const d = (place.at.x[i] - px) ** 2 + (place.at.y[i] - py) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    return best < 0 ? null : rows[best];
  };
  const onPointer = (event: PointerEvent, px: number, py: number) => {
    const frame = scatterFrame(...size.current);
    const corner = [Math.min(frame.right, Math.max(frame.left, px)), Math.min(frame.bottom, Math.max(frame.top, py))];
    if (event.type === "pointerdown" && event.button === 0) {
      (event.currentTarget as Element).setPointerCapture(event.pointerId);
      setLasso(corner);
    } else if (event.type === "pointermove") {
      if (event.buttons & 1 && lasso.length) setLasso([...lasso, ...corner]);
      else setHover(nearest(px, py));
    } else if (event.type === "pointerup" && lasso.length) {
      const corners = thinned(lasso, 6);
      setLasso([]);
      if (corners.length < 6) {
        const row = nearest(px, py);
        if (row !== null) openTrajectory(state, row);
        return;
      }
      const scales = scatterScales(data, ...size.current);
      const values = corners.map((v, i) => Number((i % 2 ? scales.y : scales.x).invert(v).toPrecision(4)));
      const others = state.filters.value.filter((filter) => filter.kind !== "lasso");
      state.setFilters(toggled(others, { kind: "lasso", x: x.name, y: y.name, polygon: values }));
    } else if (event.type === "pointercancel") setLasso([]);
  };
  const said =
    hover === null
      ? `Draw around points to filter; click one to open it.${rho === null ? "" : ` Spearman ${number(rho, 2)} over all.`}`
      : `${state.corpus.id(hover)}: ${number(x.data[hover])}, ${number(y.data[hover])}`;
  return (
    <Figure
      title={`${y.label} against ${x.label} of ${state.corpus.meta.name}`}
      description={`${rows.length} trajectories${rho === null ? "" : `, Spearman ${number(rho, 2)} over all`}.`}
      height={HEIGHT}
      fill
      draw={draw}
      overlay={overlay}
      onPointer={onPointer}
      onLeave={() => setHover(null)}
      onSize={onSize}
      cursor={hover === null ? "crosshair" : "pointer"}
      rows={() => scatterRows(state, x, y, rows)}
    >
      <div class="readout">{said}</div>
      <div class="legend">
        {legend.map(([name, colour]) => (
          <span key={name}>
            <i style={{ background: colour }} />
            {name}
          </span>
        ))}
      </div>
    </Figure>
  );
}

function* scatterRows(state: CorpusState, x: NumericColumn, y: NumericColumn, rows: Uint32Array) {
  yield ["id", x.name, y.name, "side"];
  for (const row of rows) yield [state.corpus.id(row), x.data[row], y.data[row], SIDES[state.sides.value[row]]];
}

// Okabe and Ito's colours, which any colour vision tells apart; further categories share the last.
const CATEGORY_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a6982f", "#8b8f94"];

// Quarters of a number, lowest first, and what has no value.
const QUARTER_COLOURS = ["#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#8b8f94"];

function useGroups(state: CorpusState, colourBy: string) {
  const c = palette.value;
  const sides = state.sides.value;
  const column = colourBy === "side" ? undefined : state.numeric(colourBy);
  const [, neither, , both] = state.totals.value.map((total) => total.n > 0);
  return useMemo(() => {
    if (column && !column.values) {
      const { codes, strata } = byQuarter(column.data, state.sorted(column), number);
      const none = QUARTER_COLOURS.length - 1;
      const group = Uint8Array.from(codes, (code, row) => (Number.isNaN(column.data[row]) ? none : code));
      const lacking = group.includes(none) ? [["none", QUARTER_COLOURS[none]] as [string, string]] : [];
      const legend = [...strata.map(({ label }, i): [string, string] => [label, QUARTER_COLOURS[i]]), ...lacking];
      return { group, colours: QUARTER_COLOURS, legend };
    }
    if (!column?.values) {
      const legend: [string, string][] = [
        ["SFT", c.sft],
        ...(neither ? [["neither", c.neither] as [string, string]] : []),
        ["RL", c.rl],
        ...(both ? [["both", c.accent] as [string, string]] : []),
      ];
      return { group: sides, colours: [...sideColours(c)], legend };
    }
    const last = CATEGORY_COLOURS.length - 1;
    const group = Uint8Array.from(column.data, (code) => Math.min(last, code < column.values!.length ? code : last));
    const names = column.values.slice(0, last + 1);
    const legend = names.map((name, i): [string, string] => [
      i === last && column.values!.length > last + 1 ? "others" : name,
      CATEGORY_COLOURS[i],
    ]);
    return { group, colours: CATEGORY_COLOURS, legend };
  }, [column, sides, c, neither, both]);
}
