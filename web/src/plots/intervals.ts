import type { Palette } from "../theme";
import { drawAxes, fitted, frameOf } from "./axes";
import type { Painter } from "./painter";
import { linear, padded } from "./scales";

/** A row of a dot-and-whisker plot. */
export interface IntervalRow {
  label: string;
  mean: number | null;
  low: number | null;
  high: number | null;
  colour: (c: Palette) => string;
  bold?: boolean;
  /** At the right edge. */
  note?: string;
  /** A thin line above it. */
  apart?: boolean;
}

export interface IntervalsData {
  rows: readonly IntervalRow[];
  label: string;
  text?: (value: number) => string;
  /** A vertical line: no difference, or the reference. */
  reference?: number;
  include?: readonly number[];
  labelWidth: number;
}

export const ROW = 22;
export const intervalsHeight = (rows: number): number => rows * ROW + 54;

export function drawIntervals(p: Painter, c: Palette, data: IntervalsData): void {
  const noted = data.rows.some((row) => row.note);
  const frame = frameOf(p.width, p.height, { left: data.labelWidth, top: 8, right: noted ? 96 : 14, bottom: 40 });
  const ends = data.rows.flatMap((row) => [row.low, row.high, row.mean]).filter((value) => value !== null);
  const domain = padded(Math.min(...ends, ...(data.include ?? [])), Math.max(...ends, ...(data.include ?? [])));
  const x = linear(domain, [frame.left + 4, frame.right - 4]);
  data.rows.forEach((row, i) => {
    const y = frame.top + (i + 0.5) * ROW;
    if (i % 2 === 1) p.rect(0, y - ROW / 2, p.width, ROW, c.sunken, 0.6);
    if (row.apart) p.line([0, y - ROW / 2, p.width, y - ROW / 2], c.line);
  });
  drawAxes(p, c, frame, { x, xLabel: data.label, xText: data.text });
  if (data.reference !== undefined)
    p.line([x(data.reference), frame.top, x(data.reference), frame.bottom], c.edge, 1, [3, 3]);
  data.rows.forEach((row, i) => {
    const y = frame.top + (i + 0.5) * ROW;
    const label = fitted(row.label, frame.left - 18);
    p.text(label, frame.left - 10, y, { fill: c.text, align: "end", baseline: "middle", bold: row.bold });
    if (row.mean === null) return;
    const colour = row.colour(c);
    if (row.low !== null && row.high !== null) p.line([x(row.low), y, x(row.high), y], colour, 2);
    p.circle(x(row.mean), y, 4, colour, c.panel);
    if (row.note) p.text(row.note, p.width - 6, y, { fill: c.muted, align: "end", baseline: "middle" });
  });
}
