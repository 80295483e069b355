import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { type ArmView, type Problem, paths, type ResultsView } from "../../api";
import { quoted } from "../../core/commands";
import { count, number, percent, short } from "../../core/numbers";
import { type CurvesData, drawCurves } from "../../plots/curves";
import { type Draw, Figure } from "../../plots/figure";
import { drawIntervals, type IntervalRow, intervalsHeight } from "../../plots/intervals";
import { link, param, set } from "../../router";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import type { Palette } from "../../theme";
import { Head } from "../../ui/head";
import { Loading, Panel, ProblemNotice, Select } from "../../ui/parts";
import { entries, runEntry } from "../folders";
import { CostPanel } from "./costs";
import { DocumentPanel } from "./document";
import { PairPanel } from "./pair";
import { HeatPanel, RoutesPanel } from "./routes";

export function ExperimentPage({ id }: { id: string }) {
  const [results, setResults] = useState<ResultsView | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const entry = runEntry(id);
  useEffect(() => {
    let current = true;
    source.json<ResultsView>(paths.results(id)).then(
      (found) => {
        if (!current) return;
        setProblem(null);
        setResults(found);
      },
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, entry?.version]);
  if (!results || results.id !== id)
    return problem ? (
      <main class="page">
        <ProblemNotice problem={problem} />
      </main>
    ) : (
      <Loading what="the results" />
    );
  return (
    <>
      {problem && <ProblemNotice problem={problem} />}
      <Experiment results={results} />
    </>
  );
}

export const splitOf = (results: ResultsView): string => {
  const wanted = param("split");
  return wanted && results.splits.includes(wanted) ? wanted : results.splits[0];
};

/** The arms' colours by what they are: a split corpus, one stage on all of it, or nothing. */
export function armColour(arm: ArmView): (c: Palette) => string {
  if (arm.n_sft !== null && arm.n_rl !== null) return (c) => c.accent;
  const last = arm.curve.at(-1)?.stage;
  return last === "rl" ? (c) => c.rl : last === "sft" ? (c) => c.sft : (c) => c.muted;
}

function Experiment({ results }: { results: ResultsView }) {
  const run = entries.value.find((entry) => entry.results === results.id)?.run;
  const split = splitOf(results);
  const commands = [
    { label: "Tables, in a shell", text: `gradprism report ${quoted(results.path)}` },
    {
      label: "This page as one file",
      text: `gradprism studio ${quoted(results.path)} --export ${quoted(`${results.name}.html`)}`,
    },
  ];
  const facts = [
    results.environment,
    results.model
      ? `${results.model.id.split("/").at(-1)}${results.model.parameters ? `, ${short(results.model.parameters)} parameters` : ""}`
      : "",
    results.trajectories === null ? "" : `${count(results.trajectories)} trajectories`,
    `${results.arms.length} arms`,
    results.seeds.length === 1 ? `seed ${results.seeds[0]}` : `${results.seeds.length} seeds`,
    results.created?.slice(0, 10) ?? "",
  ];
  return (
    <main class="page">
      <Head title={results.name} facts={facts} commands={commands}>
        {results.splits.length > 1 && (
          <Select
            label="split"
            value={split}
            options={results.splits.map((name) => [name, name] as const)}
            onChange={(value) => set({ split: value === results.splits[0] ? null : value }, true)}
          />
        )}
        {run && (
          <a class="button" href={link(["run", run])}>
            Run
          </a>
        )}
      </Head>
      <div class="columns">
        <div>
          <ArmsPanel results={results} split={split} />
          {results.sweeps.length > 0 && <SweepsPanel results={results} split={split} />}
        </div>
        <div>
          {results.claims.length > 0 && <ClaimsPanel results={results} />}
          <CostPanel results={results} split={split} />
        </div>
      </div>
      <PairPanel results={results} split={split} />
      {Object.keys(results.routes).length > 0 && <RoutesPanel results={results} />}
      {results.heat_map && <HeatPanel results={results} />}
      <DocumentPanel blocks={results.document} />
    </main>
  );
}

const GROUPS = [
  ["success", "success"],
  ["score", "score"],
  ["difference", "difference to the reference"],
] as const;

function ArmsPanel({ results, split }: { results: ResultsView; split: string }) {
  const measure = (GROUPS.find(([name]) => name === param("measure"))?.[0] ?? "success") as
    | "success"
    | "score"
    | "difference";
  const arms = results.arms.filter((arm) => arm[measure][split]);
  const rows = arms.map((arm, i): IntervalRow => {
    const { mean, low, high } = arm[measure][split];
    return {
      label: arm.title,
      marks: [{ mean, low, high, colour: armColour(arm) }],
      apart: i > 0 && arms[i - 1].group !== arm.group,
      note: measure === "difference" ? points(mean) : percent(mean),
    };
  });
  const draw: Draw = (p, c) =>
    drawIntervals(p, c, {
      rows,
      label: measure === "difference" ? `difference in ${split}, points` : `${measure} in ${split}`,
      text: measure === "difference" ? (v) => number(100 * v, 3) : (v) => percent(v, 0),
      reference: measure === "difference" ? 0 : undefined,
      include: measure === "difference" ? [0] : [],
      labelWidth: Math.min(230, p.width * 0.4),
    });
  const missing = results.arms.length - arms.length;
  return (
    <Panel
      title="Arms"
      label="Arms"
      tools={
        <Select
          hideLabel
          label="Measure"
          value={measure}
          options={GROUPS}
          onChange={(value) => set({ measure: value === "success" ? null : value }, true)}
        />
      }
    >
      <Figure
        title={`${measure} in ${split} of ${results.name}`}
        description={arms.map((arm) => `${arm.title} ${percent(arm[measure][split].mean)}`).join(", ")}
        height={intervalsHeight(rows)}
        draw={draw}
        rows={() => [
          ["arm", "mean", "low", "high"],
          ...arms.map((arm) => [
            arm.title,
            arm[measure][split].mean,
            arm[measure][split].low,
            arm[measure][split].high,
          ]),
        ]}
      >
        <div class="legend">
          <Key name="split" colour="accent" />
          <Key name="SFT on all" colour="sft" />
          <Key name="RL on all" colour="rl" />
          <Key name="untrained" colour="muted" />
        </div>
      </Figure>
      <p class="fine">
        95 % intervals,{" "}
        {results.is_run || results.seeds.length < 2
          ? "over tasks only, since there is one seed"
          : "for other seeds and other tasks"}
        {missing > 0 && `; ${count(missing)} arms have no ${measure} here`}.
      </p>
    </Panel>
  );
}

export function Key({ name, colour }: { name: string; colour: string }) {
  return (
    <span>
      <i style={{ background: `var(--${colour})` }} />
      {name}
    </span>
  );
}

const plain = (value: number): string => (100 * value).toFixed(1).replace("-", "−");
const points = (value: number): string => `${value > 0 ? "+" : ""}${plain(value)}`;

function ClaimsPanel({ results }: { results: ResultsView }) {
  const title = (name: string) => results.arms.find((arm) => arm.name === name)?.title ?? name;
  return (
    <Panel title="Claims" label="Claims">
      <table class="facts claims">
        <thead>
          <tr>
            <th>claim</th>
            <th>difference, points</th>
            <th>p</th>
            <th>verdict</th>
          </tr>
        </thead>
        <tbody>
          {results.claims.map((claim) => (
            <tr key={claim.text}>
              <th>
                <button
                  type="button"
                  class="link"
                  title={`${title(claim.better)} beside ${title(claim.worse)}, task by task`}
                  onClick={() => {
                    set({ better: claim.better, worse: claim.worse }, true);
                    document.getElementById("pair")?.scrollIntoView();
                  }}
                >
                  {claim.text}
                </button>
              </th>
              <td class="nowrap">
                {claim.difference
                  ? `${points(claim.difference.mean)} [${plain(claim.difference.low)}, ${plain(claim.difference.high)}]`
                  : "–"}
              </td>
              <td>{number(claim.p, 2)}</td>
              <td>{claim.verdict}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Panel>
  );
}

/** Success along an axis, arm by arm. */
function SweepsPanel({ results, split }: { results: ResultsView; split: string }) {
  return (
    <Panel title="Sweeps" label="Sweeps">
      <div class="multiples">
        {results.sweeps.map((sweep) => (
          <SweepFigure key={sweep.title} sweep={sweep} results={results} split={split} />
        ))}
      </div>
    </Panel>
  );
}

function SweepFigure({
  sweep,
  results,
  split,
}: {
  sweep: ResultsView["sweeps"][number];
  results: ResultsView;
  split: string;
}) {
  const known = useMemo(
    () =>
      sweep.points.flatMap(({ value, arm }) => {
        const found = results.arms.find((other) => other.name === arm)?.success[split];
        return found ? [{ value, ...found }] : [];
      }),
    [sweep, results, split],
  );
  const numeric = known.every(({ value }) => value.trim() !== "" && Number.isFinite(Number(value)));
  const data = useMemo<CurvesData>(() => {
    const x = known.map(({ value }, i) => (numeric ? Number(value) : i));
    return {
      curves: [
        {
          label: sweep.title,
          x,
          y: known.map((p) => p.mean),
          low: known.map((p) => p.low),
          high: known.map((p) => p.high),
          colour: (c) => c.accent,
          points: true,
        },
      ],
      xLabel: numeric ? sweep.title : "",
      xTicks: x.length <= 8 ? x : undefined,
      xText: numeric
        ? (value) => number(value)
        : (value) => (Number.isInteger(value) ? (known[value]?.value ?? "") : ""),
      yText: (value) => percent(value, 0),
    };
  }, [known, numeric, sweep]);
  const draw = useCallback<Draw>((p, c) => drawCurves(p, c, data), [data]);
  if (known.length === 0) return null;
  return (
    <div class="multiple">
      <h3>{sweep.title}</h3>
      <Figure
        title={`${sweep.title}: success in ${split} of ${results.name}`}
        description={known.map((p) => `${p.value}: ${percent(p.mean)}`).join(", ")}
        height={210}
        draw={draw}
        rows={() => [["value", "success", "low", "high"], ...known.map((p) => [p.value, p.mean, p.low, p.high])]}
      />
    </div>
  );
}
