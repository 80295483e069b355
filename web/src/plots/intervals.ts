import type { Palette } from "../theme";
import { drawAxes, fitted, frameOf } from "./axes";
import type { Painter } from "./painter";
import { linear, padded } from "./scales";

export interface Mark {
  mean: number;
  low: number;
  high: number;
  colour: (c: Palette) => string;
}

/** A row of a dot-and-whisker plot, with a mark for each of what is compared in it. */
export interface IntervalRow {
  label: string;
  marks: readonly (Mark | null)[];
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

const MARK = 9; // pixels from one mark of a row to the next

const rowHeight = (rows: readonly IntervalRow[]): number =>
  13 + MARK * Math.max(1, ...rows.map((row) => row.marks.length));
export const intervalsHeight = (rows: readonly IntervalRow[]): number => rows.length * rowHeight(rows) + 54;

export function drawIntervals(p: Painter, c: Palette, data: IntervalsData): void {
  const noted = data.rows.some((row) => row.note);
  const frame = frameOf(p.width, p.height, { left: data.labelWidth, top: 8, right: noted ? 120 : 14, bottom: 40 });
  const marks = data.rows.flatMap((row) => row.marks.filter((mark) => mark !== null));
  const ends = [...marks.flatMap((mark) => [mark.low, mark.high]), ...(data.include ?? [])];
  const x = linear(padded(Math.min(...ends), Math.max(...ends)), [frame.left + 4, frame.right - 4]);
  const height = rowHeight(data.rows);
  data.rows.forEach((row, i) => {
    const top = frame.top + i * height;
    if (i % 2 === 1) p.rect(0, top, p.width, height, c.sunken, 0.6);
    if (row.apart) p.line([0, top, p.width, top], c.line);
  });
  drawAxes(p, c, frame, { x, xLabel: data.label, xText: data.text });
  if (data.reference !== undefined)
    p.line([x(data.reference), frame.top, x(data.reference), frame.bottom], c.edge, 1, [3, 3]);
  data.rows.forEach((row, i) => {
    const y = frame.top + (i + 0.5) * height;
    const label = fitted(row.label, frame.left - 18);
    p.text(label, frame.left - 10, y, { fill: c.text, align: "end", baseline: "middle", bold: row.bold });
    row.marks.forEach((mark, j) => {
      if (!mark) return;
      const at = y + (j - (row.marks.length - 1) / 2) * MARK;
      p.line([x(mark.low), at, x(mark.high), at], mark.colour(c), row.marks.length > 1 ? 1.5 : 2);
      p.circle(x(mark.mean), at, row.marks.length > 1 ? 3 : 4, mark.colour(c), c.panel);
    });
    if (row.note) p.text(row.note, p.width - 6, y, { fill: c.muted, align: "end", baseline: "middle" });
  });
}
