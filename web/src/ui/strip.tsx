import { useLayoutEffect, useRef } from "preact/hooks";
import { palette } from "../theme";

const [W, H] = [120, 20];

/** A small histogram of all, with a mark where one stands, and a line at each cut; places are shares of its width. */
export function Strip({ counts, at, cuts }: { counts: Uint32Array; at: number; cuts: readonly number[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const c = palette.value;
  useLayoutEffect(() => {
    const ratio = window.devicePixelRatio || 1;
    const node = canvas.current!;
    [node.width, node.height] = [W * ratio, H * ratio];
    const context = node.getContext("2d")!;
    context.scale(ratio, ratio);
    const most = Math.max(1, ...counts);
    const width = W / counts.length;
    context.fillStyle = c.edge;
    context.globalAlpha = 0.55;
    counts.forEach((n, i) => {
      const height = n === 0 ? 0 : Math.max(1, (n / most) * (H - 5));
      context.fillRect(i * width, H - height, width - 0.5, height);
    });
    context.globalAlpha = 1;
    context.fillStyle = c.muted;
    for (const cut of cuts) context.fillRect(cut * W - 0.5, 3, 1, H - 3);
    if (!Number.isNaN(at)) {
      const x = Math.min(W - 3, Math.max(3, at * W));
      context.fillStyle = c.accent;
      context.fillRect(x - 1, 2, 2, H - 2);
      context.beginPath();
      context.arc(x, 3.5, 3, 0, 2 * Math.PI);
      context.fill();
    }
  }, [counts, at, cuts, c]);
  return <canvas ref={canvas} class="spark" style={{ width: `${W}px`, height: `${H}px` }} aria-hidden="true" />;
}
