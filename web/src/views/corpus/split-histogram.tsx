import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { cutParams, cutText, moved } from "../../core/cut";
import { toggled } from "../../core/filters";
import { count, number } from "../../core/numbers";
import { weightsText } from "../../core/weights";
import { type Draw, Figure } from "../../plots/figure";
import {
  binsFor,
  counts,
  drawCuts,
  drawHistogram,
  type HistogramData,
  histogramFrame,
  histogramScale,
} from "../../plots/histogram";
import { set } from "../../router";
import type { CorpusState } from "./state";

const HEIGHT = 230;

/** The scores of all trajectories and of those that filters leave; cuts are dragged, bars filter. */
export function SplitHistogram({ state }: { state: CorpusState }) {
  const ascending = state.ascending.value;
  const shown = state.shownScores.value;
  const cut = state.cut.value;
  const weights = state.weights.value;
  const metric = state.metric.value;
  const filtered = state.isFiltered.value;
  const label = state.label(metric);
  const [brush, setBrush] = useState<readonly [number, number] | null>(null);
  const [hover, setHover] = useState<string>("");
  const width = useRef(0);
  const drag = useRef<{ which: number; from: number } | null>(null);
  const bins = useMemo(() => binsFor(ascending, ascending[0], ascending[ascending.length - 1]), [ascending]);
  const all = useMemo(() => counts(ascending, bins), [ascending, bins]);
  const data = useMemo<HistogramData>(
    () => ({ label, bins, all, shown, filtered, cut }),
    [label, bins, all, shown, filtered, cut],
  );
  const draw = useCallback<Draw>((p, c) => drawHistogram(p, c, data), [data]);
  const overlay = useCallback<Draw>((p, c) => drawCuts(p, c, data, brush), [data, brush]);
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);

  const onPointer = (event: PointerEvent, px: number, py: number) => {
    const scale = histogramScale(bins, width.current, HEIGHT);
    const value = Math.min(bins.start + bins.width * bins.count, Math.max(bins.start, scale.invert(px)));
    if (event.type === "pointerdown" && event.button === 0) {
      (event.currentTarget as Element).setPointerCapture(event.pointerId);
      drag.current = { which: nearestCut(cut.at.map(scale), px), from: value };
    } else if (event.type === "pointermove" && drag.current) {
      if (drag.current.which >= 0) set(cutParams(moved(cut, drag.current.which, value)));
      else setBrush([drag.current.from, value]);
    } else if (event.type === "pointerup" && drag.current) {
      const { which, from } = drag.current;
      if (which < 0) filterRange(from, value, Math.abs(scale(value) - scale(from)) > 4);
      drag.current = null;
      setBrush(null);
    } else if (event.type === "pointercancel") {
      drag.current = null;
      setBrush(null);
    }
    const frame = histogramFrame(width.current, HEIGHT);
    const bin = Math.min(bins.count - 1, Math.floor((value - bins.start) / bins.width));
    const inside = py < frame.bottom && px >= frame.left && px <= frame.right;
    setHover(inside ? `${binText(bin)}: ${count(all[bin])}` : "");
  };
  const binEnds = (bin: number) => [bins.start + bin * bins.width, bins.start + (bin + 1) * bins.width] as const;
  const binText = (bin: number) =>
    binEnds(bin)
      .map((value) => number(value))
      .join(" to ");
  /** A click filters to its bar, a drag to the range; on the same bar again the filter goes. */
  const filterRange = (from: number, to: number, dragged: boolean) => {
    const bin = Math.min(bins.count - 1, Math.floor((to - bins.start) / bins.width));
    if (!dragged && all[bin] === 0) return;
    const [low, high] = dragged ? [Math.min(from, to), Math.max(from, to)] : binEnds(bin);
    state.setFilters(toggled(state.filters.value, { kind: "range", column: metric, low: six(low), high: six(high) }));
  };
  const [sft, none, rl, both] = state.totals.value;
  return (
    <Figure
      title={`${label} of ${state.corpus.meta.name}`}
      description={`${count(sft.n)} trajectories to SFT, ${count(none.n)} to neither, ${count(rl.n)} to RL, ${count(both.n)} to both; ${weights ? weightsText(weights) : `cut at ${cutText(cut, number)}`}.`}
      height={HEIGHT}
      draw={draw}
      overlay={overlay}
      onPointer={onPointer}
      onLeave={() => setHover("")}
      onSize={onSize}
      cursor="crosshair"
      rows={() => [["from", "to", "trajectories"], ...Array.from(all, (n, i) => [...binEnds(i), n])]}
    >
      <div class="readout">
        {hover || `${weights ? "Click" : "Drag a cut; click"} a bar, or drag over bars, to filter.`}
      </div>
    </Figure>
  );
}

/** The cut whose handle is under the pointer, or −1; of several the last, so that two in one place can be parted. */
const nearestCut = (places: readonly number[], px: number): number =>
  places.findLastIndex((place) => Math.abs(place - px) < 9);

const six = (value: number): number => Number(value.toPrecision(7));
