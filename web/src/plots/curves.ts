import { extent } from "../core/statistics";
import type { Palette } from "../theme";
import { drawAxes, fitted, frameOf } from "./axes";
import type { Painter } from "./painter";
import { linear, padded } from "./scales";

export interface Curve {
  label: string;
  x: readonly number[];
  y: readonly (number | null)[];
  low?: readonly (number | null)[];
  high?: readonly (number | null)[];
  colour: (c: Palette) => string;
  points?: boolean;
  faint?: boolean;
  dash?: number[];
}

export interface CurvesData {
  curves: readonly Curve[];
  xLabel: string;
  yLabel?: string;
  yText?: (value: number) => string;
  xText?: (value: number) => string;
  xTicks?: readonly number[];
  whole?: boolean;
  /** Values that the y axis shows at least. */
  include?: readonly number[];
  marks?: readonly { x: number; label: string; colour: (c: Palette) => string }[];
  labels?: boolean;
}

export const curvesFrame = (width: number, height: number, data: CurvesData) =>
  frameOf(width, height, {
    left: data.yLabel ? 58 : 46,
    top: 10,
    right: data.labels ? 120 : 12,
    bottom: data.xLabel ? 38 : 24,
  });

export function curvesScales(data: CurvesData, width: number, height: number) {
  const frame = curvesFrame(width, height, data);
  const xs = data.curves.flatMap((curve) => curve.x);
  const ys = data.curves
    .flatMap((curve) => [...curve.y, ...(curve.low ?? []), ...(curve.high ?? [])])
    .filter((v) => v !== null);
  return {
    frame,
    x: linear(padded(...extent(xs), 0.02), [frame.left, frame.right]),
    y: linear(padded(...extent([...ys, ...(data.include ?? [])]), 0.05), [frame.bottom, frame.top]),
  };
}

export function drawCurves(p: Painter, c: Palette, data: CurvesData): void {
  const { frame, x, y } = curvesScales(data, p.width, p.height);
  drawAxes(p, c, frame, { x, y, ...data });
  for (const mark of data.marks ?? []) {
    p.line([x(mark.x), frame.top, x(mark.x), frame.bottom], mark.colour(c), 1, [4, 3]);
    p.text(mark.label, x(mark.x) + 4, frame.top + 2, { fill: mark.colour(c), baseline: "top", halo: c.panel });
  }
  const ends: { y: number; label: string; colour: string }[] = [];
  for (const curve of data.curves) {
    const colour = curve.colour(c);
    if (curve.low && curve.high) {
      const band: number[] = [];
      curve.x.forEach((value, i) => curve.high![i] !== null && band.push(x(value), y(curve.high![i]!)));
      for (let i = curve.x.length - 1; i >= 0; i--)
        if (curve.low[i] !== null) band.push(x(curve.x[i]), y(curve.low[i]!));
      p.polygon(band, colour, 0.16);
    }
    const known = curve.x.flatMap((value, i) => (curve.y[i] === null ? [] : [[value, curve.y[i]!] as const]));
    const points = known.flatMap(([a, b]) => [x(a), y(b)]);
    p.line(points, curve.faint ? mixedWith(colour) : colour, curve.faint ? 1 : 1.75, curve.dash);
    if (curve.points || known.length === 1) for (const [a, b] of known) p.circle(x(a), y(b), 3, colour, c.panel);
    if (known.length) ends.push({ y: y(known.at(-1)![1]), label: curve.label, colour });
  }
  if (data.labels) {
    ends.sort((a, b) => a.y - b.y);
    let last = Number.NEGATIVE_INFINITY;
    for (const end of ends) {
      last = Math.max(end.y, last + 13);
      p.text(fitted(end.label, 112), frame.right + 6, last, { fill: end.colour, baseline: "middle" });
    }
  }
}

const mixedWith = (colour: string): string => `${colour}77`;
