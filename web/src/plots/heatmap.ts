import type { Palette } from "../theme";
import { frameOf } from "./axes";
import { parseColour } from "./canvas";
import type { Painter } from "./painter";

export interface HeatMapData {
  rows: readonly string[];
  columns: readonly string[];
  /** `[rows][columns]`; null where there is no such matrix. */
  values: readonly (readonly (number | null)[])[];
  rowLabel: string;
  /** Of the colours: about `centre` to both sides by `reach`, or from 0 up to it where there is no centre. */
  centre: number | null;
  reach: number;
  text: (value: number) => string;
}

export const heatFrame = (width: number, height: number) =>
  frameOf(width, height, { left: 44, top: 20, right: 8, bottom: 34 });

export function heatHeight(rows: number): number {
  return 54 + Math.max(40, Math.min(420, rows * (rows > 24 ? 10 : 18)));
}

/** The cell under a pixel. */
export function heatCell(
  data: HeatMapData,
  width: number,
  height: number,
  x: number,
  y: number,
): [number, number] | null {
  const frame = heatFrame(width, height);
  const column = Math.floor(((x - frame.left) / (frame.right - frame.left)) * data.columns.length);
  const row = Math.floor(((y - frame.top) / (frame.bottom - frame.top)) * data.rows.length);
  return column >= 0 && row >= 0 && column < data.columns.length && row < data.rows.length ? [row, column] : null;
}

export function drawHeatMap(p: Painter, c: Palette, data: HeatMapData): void {
  const frame = heatFrame(p.width, p.height);
  const w = (frame.right - frame.left) / data.columns.length;
  const h = (frame.bottom - frame.top) / data.rows.length;
  data.columns.forEach((name, j) => {
    p.text(name, frame.left + (j + 0.5) * w, frame.top - 5, { fill: c.muted, align: "middle", baseline: "bottom" });
  });
  const every = Math.max(1, Math.ceil(13 / h));
  data.rows.forEach((name, i) => {
    const y = frame.top + i * h;
    if (i % every === 0) p.text(name, frame.left - 6, y + h / 2, { fill: c.muted, align: "end", baseline: "middle" });
    data.values[i].forEach((value, j) => {
      if (value === null) return;
      p.rect(frame.left + j * w, y, w - (w > 6 ? 1 : 0), h - (h > 6 ? 1 : 0), heatColour(c, data, value));
    });
  });
  p.text(data.rowLabel, 9, (frame.top + frame.bottom) / 2, {
    fill: c.muted,
    align: "middle",
    baseline: "middle",
    rotate: -90,
  });
  legend(p, c, data, frame.left, frame.right, frame.bottom + 8);
}

function heatColour(c: Palette, data: HeatMapData, value: number): string {
  const at = Math.max(-1, Math.min(1, (value - (data.centre ?? 0)) / (data.reach || 1)));
  return mixed(c.sunken, at < 0 ? c.low : c.high, Math.abs(at));
}

function legend(p: Painter, c: Palette, data: HeatMapData, left: number, right: number, y: number): void {
  const steps = 40;
  const width = Math.min(160, (right - left) * 0.5);
  const [from, to] = [data.centre === null ? 0 : -1, 1];
  const start = (left + right - width) / 2;
  for (let i = 0; i < steps; i++) {
    const value = (data.centre ?? 0) + data.reach * (from + ((i + 0.5) / steps) * (to - from));
    p.rect(start + (i * width) / steps, y, width / steps + 0.5, 8, heatColour(c, data, value));
  }
  const ends = { fill: c.muted, baseline: "middle" } as const;
  p.text(data.text((data.centre ?? 0) + from * data.reach), start - 6, y + 4, { ...ends, align: "end" });
  p.text(data.text((data.centre ?? 0) + data.reach), start + width + 6, y + 4, ends);
}

/** `#rrggbb` between two colours. */
export function mixed(a: string, b: string, share: number): string {
  const [from, to] = [parseColour(a), parseColour(b)];
  const part = (i: number) =>
    Math.round(from[i] + (to[i] - from[i]) * share)
      .toString(16)
      .padStart(2, "0");
  return `#${part(0)}${part(1)}${part(2)}`;
}
