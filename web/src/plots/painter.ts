// Plots draw through this interface, so that one drawing function makes the picture on the screen, the PNG and the SVG.

export interface TextStyle {
  fill: string;
  size?: number;
  align?: "start" | "middle" | "end";
  baseline?: "top" | "middle" | "bottom" | "alphabetic";
  rotate?: number; // degrees, about the point
  bold?: boolean;
  halo?: string; // a colour drawn behind the letters, so that they are read on top of data
}

export interface Dots {
  x: Float32Array; // pixels
  y: Float32Array;
  group: Uint8Array; // index into colours
  colours: string[];
  radius: number;
  opacity: number;
}

export interface Painter {
  readonly width: number;
  readonly height: number;
  rect(x: number, y: number, w: number, h: number, fill: string, opacity?: number): void;
  /** A polyline through `[x0, y0, x1, y1, …]`; NaN breaks it. */
  line(points: ArrayLike<number>, stroke: string, width?: number, dash?: number[]): void;
  polygon(points: ArrayLike<number>, fill: string, opacity?: number): void;
  dots(dots: Dots): void;
  circle(x: number, y: number, radius: number, fill: string, stroke?: string): void;
  text(text: string, x: number, y: number, style: TextStyle): void;
}

export const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif';
export const FONT_SIZE = 11;
