import { palette } from "../theme";
import { bars, SmallCanvas } from "./small-canvas";

const [W, H] = [120, 20];

/** A small histogram of all, with a mark where one stands, and a line at each cut; places are shares of its width. */
export function Strip({ counts, at, cuts }: { counts: Uint32Array; at: number; cuts: readonly number[] }) {
  const c = palette.value;
  const draw = (context: CanvasRenderingContext2D) => {
    context.globalAlpha = 0.55;
    bars(context, counts, { width: W, height: H, highest: H - 5 }, () => c.edge);
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
  };
  return <SmallCanvas width={W} height={H} draw={draw} causes={[counts, at, cuts, c]} />;
}
