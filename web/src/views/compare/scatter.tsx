import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { type Comparison, MOVES } from "../../core/comparison";
import type { Corpus } from "../../core/corpus";
import { count, number, percent } from "../../core/numbers";
import { extent } from "../../core/statistics";
import { type Draw, Figure } from "../../plots/figure";
import { padded } from "../../plots/scales";
import { drawScatter, positions, type ScatterData, scatterScales } from "../../plots/scatter";
import { go, param, set } from "../../router";
import { type Palette, palette } from "../../theme";
import { Panel, Segments } from "../../ui/parts";

const moveColours = (c: Palette): string[] => [c.sft, c.rl, c.low, c.high];

const HEIGHT = 420;

/** Each trajectory by both scores, or by its ranks. */
export function Pairwise(props: {
  first: Corpus;
  pairs: { a: Uint32Array };
  found: Comparison;
  nameA: string;
  nameB: string;
}) {
  const { first, pairs, found, nameA, nameB } = props;
  const c = palette.value;
  const scale = param("scale") === "values" ? "values" : "ranks";
  const only = param("move");
  const [hover, setHover] = useState<number | null>(null);
  const width = useRef(0);
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);
  const data = useMemo<ScatterData>(() => {
    const ranked = scale === "ranks";
    const [x, y] = ranked ? [found.xRanks, found.yRanks] : [found.x, found.y];
    const all = Uint32Array.from({ length: x.length }, (_, i) => i);
    const upTo = (values: Float64Array, cut: number) =>
      values.reduce((n, value) => n + (value <= cut ? 1 : 0), 0) + 0.5;
    return {
      ...{ x, y, group: found.moves, colours: moveColours(c) },
      rows: only ? all.filter((i) => String(found.moves[i]) === only) : all,
      xLabel: ranked ? `rank by ${nameA}` : nameA,
      yLabel: ranked ? `rank by ${nameB}` : nameB,
      xDomain: padded(...extent(x)),
      yDomain: padded(...extent(y)),
      xCuts: [ranked ? upTo(found.x, found.cuts[0]) : found.cuts[0]],
      yCuts: [ranked ? upTo(found.y, found.cuts[1]) : found.cuts[1]],
      diagonal: ranked,
    };
  }, [found, scale, only, nameA, nameB, c]);
  const draw = useCallback<Draw>((p, colours) => drawScatter(p, colours, data), [data]);
  const overlay = useCallback<Draw>(
    (p, colours) => {
      if (hover === null) return;
      const scales = scatterScales(data, p.width, p.height);
      p.circle(scales.x(data.x[hover]), scales.y(data.y[hover]), 5, colours.panel, colours.text);
    },
    [hover, data],
  );
  const onPointer = (event: PointerEvent, px: number, py: number) => {
    const at = positions(data, width.current, HEIGHT);
    let [best, distance] = [-1, 144];
    for (let i = 0; i < data.rows.length; i++) {
      const d = (at.x[i] - px) ** 2 + (at.y[i] - py) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    const row = best < 0 ? null : data.rows[best];
    if (event.type === "pointerup" && row !== null) go(["corpus", first.meta.id, "trajectory", first.id(pairs.a[row])]);
    else setHover(row);
  };
  return (
    <Panel
      title="Both scores"
      label="Both scores"
      tools={
        <Segments
          label="Scale"
          value={scale}
          options={[
            ["ranks", "Ranks"],
            ["values", "Values"],
          ]}
          onChange={(value) => set({ scale: value === "ranks" ? null : value }, true)}
        />
      }
    >
      <Figure
        title={`${nameB} against ${nameA}`}
        description={`Spearman ${number(found.spearman, 3)}, ${percent(found.sameSide)} on the same side.`}
        height={HEIGHT}
        {...{ draw, overlay, onSize, onPointer }}
        onLeave={() => setHover(null)}
        cursor={hover === null ? "default" : "pointer"}
        rows={() => pairRows(first, pairs.a, found)}
      >
        <div class="readout">
          {hover === null
            ? "Click a point to open it; a name below shows its kind alone."
            : `${first.id(pairs.a[hover])}: ${MOVES[found.moves[hover]]}`}
        </div>
        <div class="legend">
          {MOVES.map((name, i) => (
            <button
              key={name}
              type="button"
              aria-pressed={only === String(i)}
              onClick={() => set({ move: only === String(i) ? null : i }, true)}
            >
              <i style={{ background: moveColours(c)[i] }} />
              {name} <small>{count(found.counts[i])}</small>
            </button>
          ))}
        </div>
      </Figure>
    </Panel>
  );
}

export function* pairRows(first: Corpus, rows: Uint32Array, found: Comparison) {
  yield ["id", "first", "second", "rank_first", "rank_second", "move"];
  for (let i = 0; i < rows.length; i++)
    yield [first.id(rows[i]), found.x[i], found.y[i], found.xRanks[i], found.yRanks[i], MOVES[found.moves[i]]];
}
