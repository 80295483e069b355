import { type Cut, SIDE_NAMES } from "../core/cut";
import { countUpTo } from "../core/statistics";
import type { Palette } from "../theme";
import { drawAxes, frameOf } from "./axes";
import { sideColours } from "./colours";
import type { Painter } from "./painter";
import { linear, type Scale } from "./scales";

export interface Bins {
  start: number;
  width: number;
  count: number;
}

/** Bins over a range: by Freedman and Diaconis's rule, but 24 to 80, so that bars can be hit with a pointer. */
export function binsFor(ascending: ArrayLike<number>, low: number, high: number): Bins {
  const n = ascending.length;
  if (n === 0 || !(high > low)) return { start: low - 0.5, width: 1, count: 1 };
  const quartile = (share: number) => ascending[Math.min(n - 1, Math.floor(share * n))];
  const rule = (2 * (quartile(0.75) - quartile(0.25))) / Math.cbrt(n);
  const count = Math.max(24, Math.min(80, rule > 0 ? Math.ceil((1.25 * (high - low)) / rule) : 40));
  return { start: low, width: (high - low) / count, count };
}

/** Numbers of ascending values per bin; the last bin holds its upper end. */
export function counts(ascending: ArrayLike<number>, { start, width, count }: Bins): Uint32Array {
  const result = new Uint32Array(count);
  let before = 0;
  for (let i = 0; i < count; i++) {
    const end = i === count - 1 ? ascending.length : lowerBound(ascending, start + (i + 1) * width);
    result[i] = end - before;
    before = end;
  }
  return result;
}

function lowerBound(ascending: ArrayLike<number>, value: number): number {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

export interface HistogramData {
  label: string;
  bins: Bins;
  /** Of all rows; those that filters leave are drawn over it. */
  all: Uint32Array;
  /** Ascending values of the rows that filters leave. */
  shown: ArrayLike<number>;
  filtered: boolean;
  cut: Cut;
}

export const histogramFrame = (width: number, height: number) =>
  frameOf(width, height, { left: 54, top: 18, right: 14, bottom: 38 });

export function histogramScale(bins: Bins, width: number, height: number): Scale {
  const frame = histogramFrame(width, height);
  return linear([bins.start, bins.start + bins.width * bins.count], [frame.left, frame.right]);
}

export function drawHistogram(p: Painter, c: Palette, data: HistogramData): void {
  const frame = histogramFrame(p.width, p.height);
  const x = histogramScale(data.bins, p.width, p.height);
  let most = 1;
  for (const value of data.all) most = Math.max(most, value);
  const y = linear([0, most * 1.02], [frame.bottom, frame.top]);
  drawAxes(p, c, frame, { x, y, xLabel: data.label, yLabel: "trajectories" });
  const { start, width, count } = data.bins;
  const gap = x(width) - x(0) > 5 ? 1 : 0;
  for (let i = 0; i < count; i++) {
    const [low, high] = [start + i * width, start + (i + 1) * width];
    const [left, right] = [x(low), x(high) - gap];
    if (data.filtered && data.all[i])
      p.rect(left, y(data.all[i]), right - left, frame.bottom - y(data.all[i]), c.edge, 0.3);
    // A bar through which a cut goes is divided as its trajectories are.
    const from = lowerBound(data.shown, low);
    const to = i === count - 1 ? data.shown.length : lowerBound(data.shown, high);
    const within = (value: number) => Math.min(to, Math.max(from, countUpTo(data.shown, value)));
    const ends = [from, ...data.cut.at.map(within), to];
    let base = frame.bottom;
    data.cut.sides.forEach((side, k) => {
      const n = ends[k + 1] - ends[k];
      if (n <= 0) return;
      const height = frame.bottom - y(n);
      p.rect(left, base - height, right - left, height, sideColours(c)[side]);
      base -= height;
    });
  }
}

/** The cuts as handles, and what the pointer is over. */
export function drawCuts(p: Painter, c: Palette, data: HistogramData, brush: readonly [number, number] | null): void {
  const frame = histogramFrame(p.width, p.height);
  const x = histogramScale(data.bins, p.width, p.height);
  if (brush) {
    const [a, b] = [x(brush[0]), x(brush[1])].sort((m, n) => m - n);
    p.rect(a, frame.top, b - a, frame.bottom - frame.top, c.accent, 0.16);
    p.line([a, frame.top, a, frame.bottom], c.accent);
    p.line([b, frame.top, b, frame.bottom], c.accent);
  }
  const places = data.cut.at.map((cut) => Math.min(frame.right, Math.max(frame.left, x(cut))));
  for (const at of places) {
    p.line([at, frame.top - 6, at, frame.bottom], c.text, 1.5);
    p.polygon([at - 5, frame.top - 12, at + 5, frame.top - 12, at, frame.top - 4], c.text);
  }
  // Each range's side, where its name fits: the outer ones beside their cuts, the others in their middle.
  const ends = [frame.left, ...places, frame.right];
  const last = data.cut.sides.length - 1;
  data.cut.sides.forEach((side, i) => {
    const name = SIDE_NAMES[side];
    const room = ends[i + 1] - ends[i] - 18;
    const style = { fill: sideColours(c)[side], bold: true, baseline: "middle", halo: c.panel } as const;
    if (room < 7 * name.length) return;
    if (last === 0) p.text(name, (ends[0] + ends[1]) / 2, frame.top - 8, { ...style, align: "middle" });
    else if (i === 0) p.text(`← ${name}`, ends[1] - 9, frame.top - 8, { ...style, align: "end" });
    else if (i === last) p.text(`${name} →`, ends[i] + 9, frame.top - 8, { ...style, align: "start" });
    else p.text(name, (ends[i] + ends[i + 1]) / 2, frame.top - 8, { ...style, align: "middle" });
  });
}
