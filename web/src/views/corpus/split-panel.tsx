import { count, duration, number, percent, short } from "../../core/numbers";
import { oneSided, rlSeconds, sftSeconds, type Total, trained } from "../../core/split";
import { set } from "../../router";
import { Notice, Panel, ProblemNotice, Select } from "../../ui/parts";
import { useAudit } from "./audit";
import { CutControls } from "./cut-controls";
import { SplitHistogram } from "./split-histogram";
import type { CorpusState } from "./state";

/** The metric's histogram, the cuts with their sliders, and what each side amounts to. */
export function SplitPanel({ state }: { state: CorpusState }) {
  const route = state.route.value;
  const routes = state.corpus.routes.value;
  const options: (readonly [string, string])[] = [
    ...state.metrics.value.map((name) => [`m:${name}`, state.label(name)] as const),
    ...routes.map((each) => [`r:${each.id}`, `route ${each.name}`] as const),
  ];
  const choose = (value: string) => {
    const cleared = { cut: null, sides: null, w: null, t: null, order: null };
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
      {state.score.value?.help && <p class="fine score-help">{state.score.value.help}</p>}
      <SplitHistogram state={state} />
      <CutControls state={state} />
      <SidesTable state={state} />
      <Warnings state={state} />
    </Panel>
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
    ["both", "both"],
  ] as const;
  const hours = (side: string, { n, tokens }: Total) => {
    const parts = [
      ...(side === "sft" || side === "both" ? [sftSeconds(costs, n, tokens)] : []),
      ...(side === "rl" || side === "both" ? [rlSeconds(costs, n, tokens)] : []),
    ];
    return parts.length && parts.every((part) => part !== null) ? parts.reduce((sum, part) => sum + part, 0) : null;
  };
  const anyHours = costs.rl !== null || costs.sft !== null;
  const everything = { n, tokens: sides.reduce((s, t) => s + t.tokens, 0) };
  const all = rlSeconds(costs, everything.n, everything.tokens);
  const rl = rlSeconds(costs, trained(sides).rl.n, trained(sides).rl.tokens);
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
                (side === "sft" || side === "rl" || sides[i].n > 0) && (
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
