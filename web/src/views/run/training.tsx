import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Log, type Problem, paths, type RunView, type Training } from "../../api";
import { count, number } from "../../core/numbers";
import { type CurvesData, curvesScales, drawCurves } from "../../plots/curves";
import { type Draw, Figure } from "../../plots/figure";
import { param, set } from "../../router";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Menu } from "../../ui/menu";
import { Loading, Notice, Panel, ProblemNotice } from "../../ui/parts";

const WINDOW = 10; // steps, as the doctor's
const USUAL = 8; // figures shown at first
const HEIGHT = 150;

/** A training's curves, raw and as means over windows, with the alarms of its doctor. */
export function TrainingPanel({ run, training }: { run: RunView; training: Training }) {
  const [log, setLog] = useState<Log | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    let current = true;
    source.json<Log>(paths.log(run.id, training.id)).then(
      (found) => current && setLog(found),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [run.id, run.version, training.id]);
  const key = `figures-${training.id}`;
  const known = training.figures.filter((name) => log?.columns[name]?.some((value) => value !== null));
  const chosen = param(key)?.split(",") ?? known.slice(0, USUAL);
  const toggle = (name: string) =>
    set(
      { [key]: (chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name]).join(",") },
      true,
    );
  const steps =
    training.total_steps === null
      ? count(training.steps)
      : `${count(training.steps)} of ${count(training.total_steps)}`;
  return (
    <Panel
      label={`Training ${training.name}`}
      title={
        <>
          {training.kind === "rl" ? "RL" : "SFT"} <span class="count">{steps} steps</span>
        </>
      }
      tools={
        <Menu label="Figures" className="button small" title="Choose figures">
          <div class="column-menu">
            {known.map((name) => (
              <label key={name}>
                <input type="checkbox" checked={chosen.includes(name)} onChange={() => toggle(name)} /> {name}
              </label>
            ))}
          </div>
        </Menu>
      }
    >
      {training.alarms.map((alarm) => (
        <Notice key={alarm.name}>
          <strong>{alarm.name}</strong> since step {count(alarm.round)}: {alarm.what}. {capital(alarm.remedy)}.
        </Notice>
      ))}
      {training.kind === "rl" && training.alarms.length === 0 && training.steps >= WINDOW && (
        <p class="fine ok">The doctor has no alarm.</p>
      )}
      {training.warnings.map((line) => (
        <Notice key={line}>{line}</Notice>
      ))}
      {problem && <ProblemNotice problem={problem} />}
      {!log && !problem && <Loading what="its log" />}
      {log && (
        <div class="multiples">
          {chosen
            .filter((name) => log.columns[name])
            .map((name) => (
              <Multiple
                key={name}
                name={name}
                log={log}
                training={training}
                title={`${name} of ${training.kind} in ${run.name}`}
              />
            ))}
        </div>
      )}
    </Panel>
  );
}

function Multiple({ name, log, training, title }: { name: string; log: Log; training: Training; title: string }) {
  const [over, setOver] = useState<number | null>(null);
  const width = useRef(0);
  const { x, y, sparse } = useMemo(() => {
    const step = log.columns.step;
    const values = log.columns[name];
    const at = values.flatMap((value, i) => (value === null ? [] : [i]));
    return {
      x: at.map((i) => step?.[i] ?? i),
      y: at.map((i) => values[i]!),
      sparse: at.length < 0.5 * values.length || at.length < 2 * WINDOW,
    };
  }, [log, name]);
  const data = useMemo<CurvesData>(() => {
    const mean = smoothed(y);
    const colour = training.kind === "rl" ? (c: { rl: string }) => c.rl : (c: { sft: string }) => c.sft;
    const raised = training.alarms.filter((alarm) =>
      RELATED[alarm.name]?.some((part) => name === part || name.endsWith(part)),
    );
    return {
      whole: true,
      curves:
        sparse || SMOOTH.includes(name)
          ? [{ label: name, x, y, colour, points: y.length < 60 }]
          : [
              { label: name, x, y, colour, faint: true },
              { label: `mean of ${WINDOW}`, x, y: mean, colour },
            ],
      xLabel: "",
      marks: raised.map((alarm) => ({ x: alarm.round, label: alarm.name, colour: (c) => c.warning })),
    };
  }, [x, y, sparse, name, training]);
  const draw = useCallback<Draw>((p, c) => drawCurves(p, c, data), [data]);
  const overlay = useCallback<Draw>(
    (p, c) => {
      if (over === null) return;
      const scales = curvesScales(data, p.width, p.height);
      p.line([scales.x(x[over]), scales.frame.top, scales.x(x[over]), scales.frame.bottom], c.edge);
      p.circle(scales.x(x[over]), scales.y(y[over]), 3, c.text);
    },
    [over, data, x, y],
  );
  const onPointer = (_: PointerEvent, px: number) => {
    const at = curvesScales(data, width.current, HEIGHT).x.invert(px);
    let best = 0;
    x.forEach((value, i) => {
      if (Math.abs(value - at) < Math.abs(x[best] - at)) best = i;
    });
    setOver(x.length ? best : null);
  };
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);
  const last = y.length - 1;
  return (
    <div class="multiple">
      <h3>
        {name.replaceAll("_", " ")}{" "}
        <span class="muted">{over === null ? number(y[last], 3) : `${number(y[over], 3)} at ${count(x[over])}`}</span>
      </h3>
      <Figure
        title={title}
        description={
          y.length ? `From ${number(y[0], 3)} to ${number(y[last], 3)} in ${count(x[last])} steps.` : "No values."
        }
        height={HEIGHT}
        {...{ draw, overlay, onPointer, onSize }}
        onLeave={() => setOver(null)}
        rows={() => [["step", name], ...x.map((step, i) => [step, y[i]])]}
      />
    </div>
  );
}

const SMOOTH = ["learning_rate", "epoch"]; // set by a schedule: a mean would show what was never so

// The figures that each alarm is about.
const RELATED: Record<string, readonly string[]> = {
  "no-gradient": ["groups_without_gradient"],
  collapse: ["success"],
  "entropy-collapse": ["entropy"],
  "entropy-rise": ["entropy"],
  drift: ["kl"],
  clipping: ["clipped_low", "clipped_high"],
  timeouts: ["out_of_steps"],
  refused: ["invalid_share"],
  repeats: ["repeated_share"],
  "greedy-gap": ["evaluation/success", "evaluation/sampled_success"],
};

/** Means over the last values, up to a window. */
function smoothed(values: readonly number[]): number[] {
  let sum = 0;
  return values.map((value, i) => {
    sum += value;
    if (i >= WINDOW) sum -= values[i - WINDOW];
    return sum / Math.min(i + 1, WINDOW);
  });
}

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
