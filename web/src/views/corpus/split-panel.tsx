import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { toggled } from "../../core/filters";
import { count, duration, number, percent, short } from "../../core/numbers";
import { oneSided, rlSeconds, sftSeconds, type Total } from "../../core/split";
import { countUpTo } from "../../core/statistics";
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
import { param, set } from "../../router";
import { Notice, Panel, ProblemNotice, Select } from "../../ui/parts";
import { useAudit } from "./audit";
import { type CorpusState, cutAtShare } from "./state";

const HEIGHT = 230;

/** The metric's histogram, the cuts with their sliders, and what each side amounts to. */
export function SplitPanel({ state }: { state: CorpusState }) {
  const { meta } = state.corpus;
  const route = state.route.value;
  const metrics = meta.metrics.filter((name) => state.column(name));
  const routes = state.corpus.routes.value;
  const options: (readonly [string, string])[] = [
    ...metrics.map((name) => [`m:${name}`, state.label(name)] as const),
    ...routes.map((each) => [`r:${each.id}`, `route ${each.name}`] as const),
  ];
  const choose = (value: string) => {
    const cleared = { t: null, s: null };
    if (value.startsWith("r:")) set({ route: value.slice(2), m: null, ...cleared }, true);
    else set({ m: value.slice(2), route: null, ...cleared }, true);
  };
  return (
    <Panel
      label="Split"
      className="split"
      title="Split"
      tools={
        <Select
          label="cut by"
          value={route ? `r:${route.id}` : `m:${state.metric.value}`}
          options={options}
          onChange={choose}
        />
      }
    >
      <SplitHistogram state={state} />
      <CutControls state={state} />
      <SidesTable state={state} />
      <Warnings state={state} />
    </Panel>
  );
}

function SplitHistogram({ state }: { state: CorpusState }) {
  const ascending = state.ascending.value;
  const shown = state.shownScores.value;
  const cuts = state.cuts.value;
  const metric = state.metric.value;
  const filtered = state.isFiltered.value;
  const label = state.label(metric);
  const [brush, setBrush] = useState<readonly [number, number] | null>(null);
  const [hover, setHover] = useState<string>("");
  const width = useRef(0);
  const drag = useRef<{ kind: "low" | "high" | "brush"; from: number } | null>(null);
  const bins = useMemo(() => binsFor(ascending, ascending[0], ascending[ascending.length - 1]), [ascending]);
  const all = useMemo(() => counts(ascending, bins), [ascending, bins]);
  const data = useMemo<HistogramData>(
    () => ({ label, bins, all, shown, filtered, cuts }),
    [label, bins, all, shown, filtered, cuts],
  );
  const draw = useCallback<Draw>((p, c) => drawHistogram(p, c, data), [data]);
  const overlay = useCallback<Draw>((p, c) => drawCuts(p, c, data, brush), [data, brush]);
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);

  const onPointer = (event: PointerEvent, px: number, py: number) => {
    const scale = histogramScale(bins, width.current, HEIGHT);
    const value = Math.min(bins.start + bins.width * bins.count, Math.max(bins.start, scale.invert(px)));
    const near = (cut: number) => Math.abs(scale(cut) - px) < 9;
    if (event.type === "pointerdown" && event.button === 0) {
      (event.currentTarget as Element).setPointerCapture(event.pointerId);
      drag.current = near(cuts[1])
        ? { kind: "high", from: value }
        : near(cuts[0])
          ? { kind: "low", from: value }
          : { kind: "brush", from: value };
    } else if (event.type === "pointermove" && drag.current) {
      if (drag.current.kind === "high") set({ t: value, s: cuts[0] < cuts[1] ? Math.min(cuts[0], value) : null });
      else if (drag.current.kind === "low") set({ s: Math.min(value, cuts[1]), t: cuts[1] });
      else setBrush([drag.current.from, value]);
    } else if (event.type === "pointerup" && drag.current) {
      if (drag.current.kind === "brush")
        filterRange(drag.current.from, value, Math.abs(scale(value) - scale(drag.current.from)) > 4);
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
  const [sft, none, rl] = state.totals.value;
  return (
    <Figure
      title={`${label} of ${state.corpus.meta.name}`}
      description={`${count(sft.n)} trajectories to SFT, ${count(none.n)} to neither, ${count(rl.n)} to RL; cut at ${number(cuts[1])}.`}
      height={HEIGHT}
      draw={draw}
      overlay={overlay}
      onPointer={onPointer}
      onLeave={() => setHover("")}
      onSize={onSize}
      cursor="crosshair"
      rows={() => [["from", "to", "trajectories"], ...Array.from(all, (n, i) => [...binEnds(i), n])]}
    >
      <div class="readout">{hover || "Drag a cut; click a bar, or drag over bars, to filter."}</div>
    </Figure>
  );
}

const six = (value: number): number => Number(value.toPrecision(7));

function CutControls({ state }: { state: CorpusState }) {
  const ascending = state.ascending.value;
  const [low, high] = state.cuts.value;
  const [min, max] = [ascending[0] ?? 0, ascending[ascending.length - 1] ?? 1];
  const step = (max - min) / 1000 || 1;
  const route = state.route.value;
  const two = low < high || param("s") !== undefined;
  const moveHigh = (value: number) => set({ t: value, s: two ? Math.min(low, value) : null });
  const moveLow = (value: number) => set({ t: high, s: Math.min(value, high) });
  const share = ascending.length ? 1 - countUpTo(ascending, high) / ascending.length : 0;
  const split = () =>
    set(two ? { s: null, t: high } : { t: high, s: cutAtShare(ascending, Math.min(1, share + 0.1)) }, true);
  return (
    <div class="cuts">
      <CutRow name={two ? "to RL above" : "cut"} {...{ min, max, step }} value={high} onMove={moveHigh} />
      {two && <CutRow name="to SFT up to" {...{ min, max, step }} value={low} onMove={moveLow} />}
      <div class="cut-actions">
        <label class="field">
          <span>RL share</span>
          <input
            class="number"
            type="number"
            min={0}
            max={100}
            step={1}
            value={(100 * share).toFixed(1)}
            onChange={(event) => moveHigh(cutAtShare(ascending, Number(event.currentTarget.value) / 100))}
          />
          <span>%</span>
        </label>
        <button type="button" class="button small" onClick={() => set({ t: null, s: null }, true)}>
          {route ? "As routed" : "Median"}
        </button>
        <button type="button" class="button small" aria-pressed={two} onClick={split}>
          Two cuts
        </button>
      </div>
    </div>
  );
}

function CutRow(props: {
  name: string;
  min: number;
  max: number;
  step: number;
  value: number;
  onMove: (value: number) => void;
}) {
  const moved = (text: string) => {
    const value = Number(text);
    if (text !== "" && Number.isFinite(value)) props.onMove(value);
  };
  return (
    <label class="cut-row">
      <span>{props.name}</span>
      <input
        type="range"
        min={props.min}
        max={props.max}
        step={props.step}
        value={props.value}
        onInput={(event) => moved(event.currentTarget.value)}
      />
      <input
        class="number wide"
        type="number"
        step="any"
        aria-label={`${props.name}, exactly`}
        value={Number(props.value.toPrecision(6))}
        onChange={(event) => moved(event.currentTarget.value)}
      />
    </label>
  );
}

function SidesTable({ state }: { state: CorpusState }) {
  const sides = state.totals.value;
  const shown = state.isFiltered.value ? state.shownTotals.value : null;
  const n = sides.reduce((sum, side) => sum + side.n, 0);
  const { costs } = state.corpus.meta;
  const names = [
    ["sft", "SFT"],
    ["none", "neither"],
    ["rl", "RL"],
  ] as const;
  const hours = (side: string, total: Total) =>
    side === "none"
      ? null
      : side === "rl"
        ? rlSeconds(costs, total.n, total.tokens)
        : sftSeconds(costs, total.n, total.tokens);
  const anyHours = costs.rl !== null || costs.sft !== null;
  const everything = { n, tokens: sides.reduce((s, t) => s + t.tokens, 0) };
  const all = rlSeconds(costs, everything.n, everything.tokens);
  const rl = rlSeconds(costs, sides[2].n, sides[2].tokens);
  return (
    <>
      <div class="share-bar" aria-hidden="true">
        {names.map(([side], i) => (
          <i key={side} class={side} style={{ width: `${(100 * sides[i].n) / Math.max(1, n)}%` }} />
        ))}
      </div>
      <div class="wide-table">
        {" "}
        <table class="facts sides" aria-label="What goes where">
          <thead>
            <tr>
              <th />
              <th>trajectories</th>
              <th>share</th>
              {shown && <th>of the shown</th>}
              <th>tokens</th>
              <th>response</th>
              {anyHours && <th title={costs.rl?.source ?? costs.sft?.source}>expected time</th>}
            </tr>
          </thead>
          <tbody>
            {names.map(
              ([side, name], i) =>
                (side !== "none" || sides[i].n > 0) && (
                  <tr key={side} data-side={side}>
                    <th>
                      <span class={`side ${side}`}>{name}</span>
                    </th>
                    <td class="n">{count(sides[i].n)}</td>
                    <td>{percent(sides[i].n / Math.max(1, n))}</td>
                    {shown && <td>{count(shown[i].n)}</td>}
                    <td>{short(sides[i].tokens)}</td>
                    <td>{short(sides[i].response)}</td>
                    {anyHours && <td class="time">{duration(hours(side, sides[i]))}</td>}
                  </tr>
                ),
            )}
          </tbody>
        </table>
      </div>
      <p class="fine">
        {costs.rl === null
          ? "Hours of RL are not known: name a run with a ledger, or give --device-tflops."
          : `RL on all tasks: ${duration(all)}; this cut saves ${duration((all ?? 0) - (rl ?? 0))}${
              costs.probe_seconds === null ? "" : `, the probe took ${duration(costs.probe_seconds)}`
            }. Rates: ${costs.rl.source}.`}
      </p>
    </>
  );
}

function Warnings({ state }: { state: CorpusState }) {
  const { audit, problem, stale } = useAudit(state);
  const now = oneSided(state.totals.value);
  const lines = (audit?.warnings ?? []).filter(
    (line) => !(now && /^all \d+ trajectories|go to (SFT|RL) at this threshold/.test(line)),
  );
  const nOverrides = state.overrides.value.size;
  return (
    <div class={`audit ${stale ? "stale" : ""}`} aria-live="polite">
      {now && <Notice>{now}</Notice>}
      {lines.map((line) => (
        <Notice key={line}>{line}</Notice>
      ))}
      {problem && <ProblemNotice problem={problem} />}
      {nOverrides > 0 && <p class="fine">{count(nOverrides)} overridden by hand, whatever the cut.</p>}
      {audit && <AuditFigures state={state} audit={audit} stale={stale} />}
    </div>
  );
}

function AuditFigures({
  audit,
  stale,
}: {
  state: CorpusState;
  audit: NonNullable<ReturnType<typeof useAudit>["audit"]>;
  stale: boolean;
}) {
  const error = audit.threshold_standard_error;
  const share = audit.share_within_one_standard_error;
  const rows = Object.entries(audit.spearman);
  return (
    <details class="audit-figures">
      <summary>
        Audit{stale && ` of the cut at ${number(audit.threshold)}`}
        {audit.warnings.length === 0 && <span class="ok"> no warning</span>}
        {error !== null && (
          <span class="muted">
            {" "}
            · standard error of the cut {number(error, 2)}
            {share !== null && `, ${percent(share)} within it`}
          </span>
        )}
      </summary>
      <table class="facts">
        <thead>
          <tr>
            <th>the score against</th>
            <th>Spearman</th>
            <th>its split: RL</th>
            <th>same side</th>
            <th>Jaccard</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, rho]) => {
            const by = audit.split_by[name];
            return (
              <tr key={name}>
                <th>{name}</th>
                <td>{number(rho, 2)}</td>
                <td>{by?.rl ?? ""}</td>
                <td>{by ? percent(by.same_side) : ""}</td>
                <td>{by ? number(by.jaccard, 2) : ""}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {audit.task_type_eta_squared !== null && (
        <p class="fine">Task types explain {percent(audit.task_type_eta_squared)} of the score's variance (η²).</p>
      )}
      {audit.notes.map((note) => (
        <p class="fine" key={note}>
          {note}
        </p>
      ))}
    </details>
  );
}
