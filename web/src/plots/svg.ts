import { visible } from "../core/plain";
import { type Dots, FONT, FONT_SIZE, type Painter, type TextStyle } from "./painter";

const DY = { top: "0.8em", middle: "0.35em", bottom: "-0.2em", alphabetic: "0" };

/** A painter whose result is an SVG document. */
export class SvgPainter implements Painter {
  private readonly parts: string[] = [];

  constructor(
    readonly width: number,
    readonly height: number,
  ) {}

  rect(x: number, y: number, w: number, h: number, fill: string, opacity = 1): void {
    this.parts.push(`<rect x="${r(x)}" y="${r(y)}" width="${r(w)}" height="${r(h)}" fill="${fill}"${faded(opacity)}/>`);
  }

  line(points: ArrayLike<number>, stroke: string, width = 1, dash: number[] = []): void {
    let path = "";
    let pen = false;
    for (let i = 0; i < points.length; i += 2) {
      if (Number.isNaN(points[i]) || Number.isNaN(points[i + 1])) pen = false;
      else {
        path += `${pen ? "L" : "M"}${r(points[i])} ${r(points[i + 1])}`;
        pen = true;
      }
    }
    const dashes = dash.length ? ` stroke-dasharray="${dash.join(" ")}"` : "";
    this.parts.push(`<path d="${path}" fill="none" stroke="${stroke}" stroke-width="${width}"${dashes}/>`);
  }

  polygon(points: ArrayLike<number>, fill: string, opacity = 1): void {
    const pairs = Array.from({ length: points.length / 2 }, (_, i) => `${r(points[2 * i])},${r(points[2 * i + 1])}`);
    this.parts.push(`<polygon points="${pairs.join(" ")}" fill="${fill}"${faded(opacity)}/>`);
  }

  /** One path of round ends for each colour: 100,000 elements would open nowhere. */
  dots({ x, y, group, colours, radius, opacity }: Dots): void {
    colours.forEach((colour, which) => {
      let path = "";
      for (let i = 0; i < x.length; i++) if (group[i] === which) path += `M${r(x[i])} ${r(y[i])}h0`;
      if (!path) return;
      this.parts.push(
        `<path d="${path}" stroke="${colour}" stroke-width="${2 * radius}" stroke-linecap="round" stroke-opacity="${opacity}"/>`,
      );
    });
  }

  circle(x: number, y: number, radius: number, fill: string, stroke?: string): void {
    const edge = stroke ? ` stroke="${stroke}" stroke-width="1.5"` : "";
    this.parts.push(`<circle cx="${r(x)}" cy="${r(y)}" r="${radius}" fill="${fill}"${edge}/>`);
  }

  text(text: string, x: number, y: number, style: TextStyle): void {
    const turn = style.rotate ? ` transform="rotate(${style.rotate} ${r(x)} ${r(y)})"` : "";
    const weight = style.bold ? ' font-weight="600"' : "";
    const halo = style.halo
      ? ` paint-order="stroke" stroke="${style.halo}" stroke-width="3" stroke-linejoin="round"`
      : "";
    this.parts.push(
      `<text x="${r(x)}" y="${r(y)}" dy="${DY[style.baseline ?? "alphabetic"]}" text-anchor="${style.align ?? "start"}" ` +
        `font-size="${style.size ?? FONT_SIZE}" fill="${style.fill}"${weight}${halo}${turn}>${escaped(visible(text))}</text>`,
    );
  }

  document(title: string, background: string): string {
    const size = `width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}"`;
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="${escaped(FONT)}"><title>${escaped(title)}</title>` +
      `<rect width="100%" height="100%" fill="${background}"/>${this.parts.join("\n")}</svg>\n`
    );
  }
}

const r = (value: number): string => String(Math.round(value * 100) / 100);
const faded = (opacity: number): string => (opacity < 1 ? ` fill-opacity="${opacity}"` : "");

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

// Control characters may not stand in XML at all.
export function escaped(text: string): string {
  return text
    .replace(/[&<>"]/g, (letter) => ENTITIES[letter])
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])/g, "\ufffd");
}
