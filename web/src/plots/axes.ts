import type { Palette } from "../theme";
import type { Painter } from "./painter";
import { type Scale, ticks, tickText } from "./scales";

export interface Frame {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

/** The inner rectangle of a plot with these margins. */
export function frameOf(width: number, height: number, margin: Partial<Frame> = {}): Frame {
  const { left = 48, top = 10, right = 12, bottom = 36 } = margin;
  return { left, top, right: Math.max(left + 10, width - right), bottom: Math.max(top + 10, height - bottom) };
}

interface Axes {
  x?: Scale;
  y?: Scale;
  xLabel?: string;
  yLabel?: string;
  xText?: (value: number) => string;
  /** Ticks where they are wanted; else round values. */
  xTicks?: readonly number[];
  /** The values of x are whole numbers. */
  whole?: boolean;
  yText?: (value: number) => string;
  /** Lines across at the y ticks. */
  grid?: boolean;
}

export function drawAxes(p: Painter, c: Palette, frame: Frame, axes: Axes): void {
  const { left, top, right, bottom } = frame;
  if (axes.y) {
    const at = ticks(axes.y.domain, Math.max(3, (bottom - top) / 45));
    const text = axes.yText ?? tickText(at);
    for (const value of at) {
      const y = Math.round(axes.y(value)) + 0.5;
      if (axes.grid !== false) p.line([left, y, right, y], c.line);
      p.text(text(value), left - 6, y, { fill: c.muted, align: "end", baseline: "middle" });
    }
    if (axes.yLabel) {
      p.text(axes.yLabel, 8, (top + bottom) / 2, { fill: c.muted, align: "middle", baseline: "middle", rotate: -90 });
    }
  }
  if (axes.x) {
    const at = [...(axes.xTicks ?? ticks(axes.x.domain, Math.max(3, (right - left) / 70), axes.whole))];
    const text = axes.xText ?? tickText(at);
    for (const value of at) {
      const x = Math.round(axes.x(value)) + 0.5;
      p.line([x, bottom, x, bottom + 4], c.edge);
      p.text(text(value), x, bottom + 7, { fill: c.muted, align: "middle", baseline: "top" });
    }
    if (axes.xLabel) {
      p.text(axes.xLabel, (left + right) / 2, bottom + 22, { fill: c.muted, align: "middle", baseline: "top" });
    }
  }
  p.line([left, Math.round(bottom) + 0.5, right, Math.round(bottom) + 0.5], c.edge);
}

/** A text cut to about so many pixels of the plots' letters. */
export function fitted(text: string, pixels: number, size = 11): string {
  const most = Math.max(3, Math.floor(pixels / (size * 0.54)));
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
