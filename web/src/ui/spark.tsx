import { useLayoutEffect, useRef } from "preact/hooks";
import type { Cut } from "../core/cut";
import { sideColours } from "../plots/colours";
import { palette } from "../theme";

const [W, H] = [96, 18];

/** A small histogram, coloured by the sides of a cut whose places are given as shares of its width. */
export function Spark({ counts, cut }: { counts: Uint32Array | undefined; cut: Cut }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const colours = palette.value;
  useLayoutEffect(() => {
    const ratio = window.devicePixelRatio || 1;
    const node = canvas.current!;
    [node.width, node.height] = [W * ratio, H * ratio];
    const context = node.getContext("2d")!;
    context.scale(ratio, ratio);
    if (!counts) return;
    const most = Math.max(1, ...counts);
    const width = W / counts.length;
    counts.forEach((n, i) => {
      const middle = (i + 0.5) / counts.length;
      context.fillStyle = sideColours(colours)[cut.sides[cut.at.filter((place) => middle > place).length]];
      const height = n === 0 ? 0 : Math.max(1, (n / most) * (H - 1));
      context.fillRect(i * width, H - height, width - 0.5, height);
    });
    context.fillStyle = colours.edge;
    context.fillRect(0, H - 0.5, W, 0.5);
  }, [counts, cut, colours]);
  return <canvas ref={canvas} class="spark" style={{ width: `${W}px`, height: `${H}px` }} aria-hidden="true" />;
}
