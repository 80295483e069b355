import type { Palette } from "../theme";
import { drawAxes, frameOf } from "./axes";
import type { Painter } from "./painter";
import { linear } from "./scales";

export interface ScatterData {
  x: ArrayLike<number>;
  y: ArrayLike<number>;
  rows: Uint32Array; // which are drawn
  group: Uint8Array; // by row
  colours: string[];
  xLabel: string;
  yLabel: string;
  xDomain: readonly [number, number];
  yDomain: readonly [number, number];
  /** Lines across: a cut of the metric that is on the axis. */
  xCuts?: readonly number[];
  yCuts?: readonly number[];
  diagonal?: boolean;
}

export const scatterFrame = (width: number, height: number) =>
  frameOf(width, height, { left: 54, top: 8, right: 12, bottom: 40 });

export function scatterScales(data: ScatterData, width: number, height: number) {
  const frame = scatterFrame(width, height);
  return {
    frame,
    x: linear(data.xDomain, [frame.left + 3, frame.right - 3]),
    y: linear(data.yDomain, [frame.bottom - 3, frame.top + 3]),
  };
}

/** Pixels of the rows that are drawn. */
export function positions(data: ScatterData, width: number, height: number): { x: Float32Array; y: Float32Array } {
  const scales = scatterScales(data, width, height);
  const [xs, ys] = [new Float32Array(data.rows.length), new Float32Array(data.rows.length)];
  const [x0, y0] = [scales.x(0), scales.y(0)];
  const [dx, dy] = [scales.x(1) - x0, scales.y(1) - y0];
  for (let i = 0; i < data.rows.length; i++) {
    xs[i] = x0 + dx * data.x[data.rows[i]];
    ys[i] = y0 + dy * data.y[data.rows[i]];
  }
  return { x: xs, y: ys };
}

/** Smaller and fainter where there are many. */
export const dotRadius = (n: number): number => (n > 20_000 ? 0.75 : n > 4000 ? 1.25 : n > 800 ? 1.75 : 2.5);
const dotOpacity = (n: number): number => (n > 20_000 ? 0.5 : n > 4000 ? 0.6 : n > 800 ? 0.7 : 0.8);

export function drawScatter(p: Painter, c: Palette, data: ScatterData): void {
  const { frame, x, y } = scatterScales(data, p.width, p.height);
  drawAxes(p, c, frame, { x, y, xLabel: data.xLabel, yLabel: data.yLabel });
  const group = new Uint8Array(data.rows.length);
  for (let i = 0; i < group.length; i++) group[i] = data.group[data.rows[i]];
  const n = data.rows.length;
  if (data.diagonal) {
    const low = Math.max(data.xDomain[0], data.yDomain[0]);
    const high = Math.min(data.xDomain[1], data.yDomain[1]);
    p.line([x(low), y(low), x(high), y(high)], c.edge, 1, [3, 3]);
  }
  const colours = data.colours;
  p.dots({ ...positions(data, p.width, p.height), group, colours, radius: dotRadius(n), opacity: dotOpacity(n) });
  for (const cut of data.xCuts ?? []) p.line([x(cut), frame.top, x(cut), frame.bottom], c.text, 1, [4, 3]);
  for (const cut of data.yCuts ?? []) p.line([frame.left, y(cut), frame.right, y(cut)], c.text, 1, [4, 3]);
}
