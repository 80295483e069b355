import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { csv, download, fileName } from "../core/download";
import { LIGHT, type Palette, palette } from "../theme";
import { Menu } from "../ui/menu";
import { CanvasPainter } from "./canvas";
import type { Painter } from "./painter";
import { SvgPainter } from "./svg";

export type Draw = (painter: Painter, palette: Palette) => void;
export type Rows = Iterable<readonly (string | number | boolean | null | undefined)[]>;

interface Props {
  /** For its files, and for those who do not see it. */
  title: string;
  /** What it shows, in a sentence with its numbers, for those who do not see it. */
  description: string;
  height: number;
  /** Where its place is higher than that, it fills the place. */
  fill?: boolean;
  draw: Draw;
  /** Drawn on a canvas above, without the rest being drawn again: what follows the pointer. */
  overlay?: Draw;
  rows: () => Rows;
  onPointer?: (event: PointerEvent, x: number, y: number) => void;
  onLeave?: () => void;
  onSize?: (width: number, height: number) => void;
  cursor?: string;
  children?: ComponentChildren;
}

/** A plot on a canvas, with its picture as PNG and SVG and its numbers as CSV. */
export function Figure(props: Props) {
  const box = useRef<HTMLDivElement>(null);
  const base = useRef<HTMLCanvasElement>(null);
  const above = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(0);
  const [ratio, setRatio] = useState(window.devicePixelRatio || 1);
  const colours = palette.value;
  const [room, setRoom] = useState(0);
  const { onSize } = props;
  const height = props.fill ? Math.max(props.height, room) : props.height;

  useLayoutEffect(() => {
    const measure = () => {
      setWidth(Math.floor(box.current!.clientWidth));
      setRoom(Math.floor(box.current!.clientHeight));
      setRatio(window.devicePixelRatio || 1);
    };
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (width) onSize?.(width, height);
  }, [width, height, onSize]);
  useLayoutEffect(() => {
    if (width) paint(base.current!, props.draw, width, height, ratio, colours);
  }, [props.draw, width, height, ratio, colours]);
  useLayoutEffect(() => {
    if (width && props.overlay) paint(above.current!, props.overlay, width, height, ratio, colours);
  }, [props.overlay, width, height, ratio, colours]);

  const pointer = (event: PointerEvent) => {
    const { left, top } = box.current!.getBoundingClientRect();
    props.onPointer?.(event, event.clientX - left, event.clientY - top);
  };
  const listeners = props.onPointer && {
    onPointerDown: pointer,
    onPointerMove: pointer,
    onPointerUp: pointer,
    onPointerCancel: pointer,
    onPointerLeave: props.onLeave,
  };
  const both: Draw = (painter, light) => {
    props.draw(painter, light);
    props.overlay?.(painter, light);
  };
  const saves = [
    ["PNG", "picture", () => savePng(props.title, both, width, height)],
    ["SVG", "drawing", () => saveSvg(props.title, both, width, height)],
    ["CSV", "its numbers", () => download(`${fileName(props.title)}.csv`, csv(props.rows()), "text/csv")],
  ] as const;
  return (
    <figure class={`figure ${props.fill ? "fill" : ""}`}>
      <div
        ref={box}
        class="figure-box"
        style={{ [props.fill ? "minHeight" : "height"]: `${props.height}px`, cursor: props.cursor }}
        role="img"
        aria-label={`${props.title}. ${props.description}`}
        {...listeners}
      >
        <canvas ref={base} />
        {props.overlay && <canvas ref={above} />}
      </div>
      {props.children}
      <div class="figure-save">
        <Menu label="⤓" title={`Save “${props.title}”`} className="button quiet small">
          {(close) => (
            <>
              {saves.map(([name, what, save]) => (
                <button
                  key={name}
                  type="button"
                  class="menu-item"
                  onClick={() => {
                    save();
                    close();
                  }}
                >
                  {name} <small>{what}</small>
                </button>
              ))}
            </>
          )}
        </Menu>
      </div>
    </figure>
  );
}

function paint(
  canvas: HTMLCanvasElement,
  draw: Draw,
  width: number,
  height: number,
  ratio: number,
  colours: Palette,
): void {
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d")!;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  draw(new CanvasPainter(context, width, height, ratio), colours);
}

// Saved pictures are light whatever the page is: they go into documents.
function savePng(title: string, draw: Draw, width: number, height: number): void {
  const canvas = document.createElement("canvas");
  paint(
    canvas,
    (painter, colours) => {
      painter.rect(0, 0, width, height, colours.panel);
      draw(painter, colours);
    },
    width,
    height,
    2,
    LIGHT,
  );
  canvas.toBlob((blob) => blob && download(`${fileName(title)}.png`, blob));
}

function saveSvg(title: string, draw: Draw, width: number, height: number): void {
  const painter = new SvgPainter(width, height);
  draw(painter, LIGHT);
  download(`${fileName(title)}.svg`, painter.document(title, LIGHT.panel), "image/svg+xml");
}
