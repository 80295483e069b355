import type { Cut } from "../core/cut";
import { sideColours } from "../plots/colours";
import { palette } from "../theme";
import { bars, SmallCanvas } from "./small-canvas";

const [W, H] = [96, 18];

/** A small histogram, coloured by the sides of a cut whose places are given as shares of its width. */
export function Spark({ counts, cut }: { counts: Uint32Array | undefined; cut: Cut }) {
  const colours = palette.value;
  const draw = (context: CanvasRenderingContext2D) => {
    if (!counts) return;
    const sideAt = (middle: number) => cut.sides[cut.at.filter((place) => middle > place).length];
    bars(context, counts, { width: W, height: H, highest: H - 1 }, (middle) => sideColours(colours)[sideAt(middle)]);
    context.fillStyle = colours.edge;
    context.fillRect(0, H - 0.5, W, 0.5);
  };
  return <SmallCanvas width={W} height={H} draw={draw} causes={[counts, cut, colours]} />;
}
