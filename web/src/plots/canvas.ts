import { visible } from "../core/plain";
import { type Dots, FONT, FONT_SIZE, type Painter, type TextStyle } from "./painter";

const BASELINES = { top: "top", middle: "middle", bottom: "bottom", alphabetic: "alphabetic" } as const;

/** A painter on a canvas whose context is already scaled to CSS pixels. */
export class CanvasPainter implements Painter {
  constructor(
    private readonly context: CanvasRenderingContext2D,
    readonly width: number,
    readonly height: number,
    private readonly scale: number,
  ) {}

  rect(x: number, y: number, w: number, h: number, fill: string, opacity = 1): void {
    const c = this.context;
    c.globalAlpha = opacity;
    c.fillStyle = fill;
    c.fillRect(x, y, w, h);
    c.globalAlpha = 1;
  }

  line(points: ArrayLike<number>, stroke: string, width = 1, dash: number[] = []): void {
    const c = this.context;
    c.beginPath();
    let pen = false;
    for (let i = 0; i < points.length; i += 2) {
      const [x, y] = [points[i], points[i + 1]];
      if (Number.isNaN(x) || Number.isNaN(y)) pen = false;
      else if (pen) c.lineTo(x, y);
      else {
        c.moveTo(x, y);
        pen = true;
      }
    }
    c.strokeStyle = stroke;
    c.lineWidth = width;
    c.lineJoin = "round";
    c.setLineDash(dash);
    c.stroke();
    c.setLineDash([]);
  }

  polygon(points: ArrayLike<number>, fill: string, opacity = 1): void {
    const c = this.context;
    c.beginPath();
    for (let i = 0; i < points.length; i += 2) c.lineTo(points[i], points[i + 1]);
    c.closePath();
    c.globalAlpha = opacity;
    c.fillStyle = fill;
    c.fill();
    c.globalAlpha = 1;
  }

  /** Discs blended pixel by pixel: a canvas takes some ten times as long for 100,000 shapes of its own. */
  dots({ x, y, group, colours, radius, opacity }: Dots): void {
    const w = Math.round(this.width * this.scale);
    const h = Math.round(this.height * this.scale);
    const side = Math.max(1, Math.round(2 * radius * this.scale));
    const sums = layer(w, h);
    const words = new Int32Array(sums.data.buffer); // a pixel each: alpha, blue, green, red
    const own = Uint32Array.from(colours, (colour) => {
      const [r, g, b] = parseColour(colour);
      return (b << 16) | (g << 8) | r;
    });
    const alpha = Math.round(opacity * 255);
    const rest = 256 - alpha;
    const disc = discOf(side, w);
    const half = side / 2 - 0.5;
    for (let i = 0; i < x.length; i++) {
      const left = Math.floor(x[i] * this.scale - half);
      const top = Math.floor(y[i] * this.scale - half);
      if (!(left >= 0 && top >= 0 && left + side <= w && top + side <= h)) continue;
      const start = top * w + left;
      const colour = own[group[i]];
      const redBlue = (colour & 0xff00ff) * alpha;
      const green = (colour & 0xff00) * alpha;
      for (let k = 0; k < disc.length; k++) {
        // Source over, with colours that are not premultiplied: opaque enough after a few points that lie on top of each other.
        const at = start + disc[k];
        const under = words[at];
        if (under === 0) words[at] = colour | (alpha << 24);
        else {
          const mixed =
            ((((under & 0xff00ff) * rest + redBlue) >>> 8) & 0xff00ff) |
            ((((under & 0xff00) * rest + green) >>> 8) & 0xff00);
          const depth = under >>> 24;
          words[at] = mixed | ((depth + (((255 - depth) * alpha) >> 8)) << 24);
        }
      }
    }
    between.canvas.width = w;
    between.canvas.height = h;
    between.putImageData(sums, 0, 0);
    this.context.drawImage(between.canvas, 0, 0, this.width, this.height);
  }

  circle(x: number, y: number, radius: number, fill: string, stroke?: string): void {
    const c = this.context;
    c.beginPath();
    c.arc(x, y, radius, 0, 2 * Math.PI);
    c.fillStyle = fill;
    c.fill();
    if (stroke) {
      c.strokeStyle = stroke;
      c.lineWidth = 1.5;
      c.stroke();
    }
  }

  text(given: string, x: number, y: number, style: TextStyle): void {
    const text = visible(given);
    const c = this.context;
    c.font = `${style.bold ? "600 " : ""}${style.size ?? FONT_SIZE}px ${FONT}`;
    c.textAlign = style.align === "middle" ? "center" : (style.align ?? "start");
    c.textBaseline = BASELINES[style.baseline ?? "alphabetic"];
    c.save();
    c.translate(x, y);
    if (style.rotate) c.rotate((style.rotate * Math.PI) / 180);
    if (style.halo) {
      c.strokeStyle = style.halo;
      c.lineWidth = 3;
      c.lineJoin = "round";
      c.strokeText(text, 0, 0);
    }
    c.fillStyle = style.fill;
    c.fillText(text, 0, 0);
    c.restore();
  }
}

// Pixels can be put on a canvas, but only a canvas can be drawn over what is there.
const between = document.createElement("canvas").getContext("2d")!;
let kept: ImageData | undefined;

/** An empty picture of that size; the last one is used again, since a new one is 4 MB of garbage a frame. */
function layer(w: number, h: number): ImageData {
  if (kept?.width === w && kept.height === h) kept.data.fill(0);
  else kept = new ImageData(w, h);
  return kept;
}

/** Offsets in a picture `width` pixels wide of the pixels of a disc, from the corner of the square about it. */
function discOf(side: number, width: number): Int32Array {
  const offsets: number[] = [];
  const centre = (side - 1) / 2;
  const reach = side < 3 ? Number.POSITIVE_INFINITY : (side / 2) ** 2;
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) if ((x - centre) ** 2 + (y - centre) ** 2 <= reach) offsets.push(y * width + x);
  }
  return Int32Array.from(offsets);
}

/** Red, green, blue of `#rrggbb`. */
export function parseColour(colour: string): [number, number, number] {
  const value = Number.parseInt(colour.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}
