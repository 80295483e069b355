import type { ComponentChildren } from "preact";
import type { Problem } from "../api";

export function Notice({
  kind = "warning",
  children,
}: {
  kind?: "warning" | "bad" | "info";
  children: ComponentChildren;
}) {
  return (
    <div class={`notice ${kind}`} role={kind === "bad" ? "alert" : "status"}>
      {children}
    </div>
  );
}

export function ProblemNotice({ problem }: { problem: Problem }) {
  return (
    <Notice kind="bad">
      <strong>{problem.message}</strong>
      {problem.hint && <div>{problem.hint}</div>}
    </Notice>
  );
}

export function Panel(props: {
  title?: ComponentChildren;
  tools?: ComponentChildren;
  className?: string;
  label?: string;
  children: ComponentChildren;
}) {
  return (
    <section class={`panel ${props.className ?? ""}`} aria-label={props.label}>
      {(props.title || props.tools) && (
        <header class="panel-head">
          <h2>{props.title}</h2>
          <div class="tools">{props.tools}</div>
        </header>
      )}
      {props.children}
    </section>
  );
}

export function Select(props: {
  label: string;
  value: string;
  options: readonly (readonly [value: string, text: string])[];
  onChange: (value: string) => void;
  hideLabel?: boolean;
}) {
  return (
    <label class="field">
      <span class={props.hideLabel ? "hidden" : ""}>{props.label}</span>
      <select value={props.value} onChange={(event) => props.onChange(event.currentTarget.value)}>
        {props.options.map(([value, text]) => (
          <option key={value} value={value}>
            {text}
          </option>
        ))}
      </select>
    </label>
  );
}

/** A choice of few, as buttons side by side. */
export function Segments(props: {
  label: string;
  value: string;
  options: readonly (readonly [value: string, text: string])[];
  onChange: (value: string) => void;
}) {
  return (
    <div class="segments" role="group" aria-label={props.label}>
      {props.options.map(([value, text]) => (
        <button key={value} type="button" aria-pressed={value === props.value} onClick={() => props.onChange(value)}>
          {text}
        </button>
      ))}
    </div>
  );
}

const SIDES = { sft: "SFT", none: "neither", rl: "RL", both: "both" } as const;

export function SideMark({ side }: { side: keyof typeof SIDES }) {
  return <span class={`side ${side}`}>{SIDES[side]}</span>;
}

export function Loading({ what }: { what: string }) {
  return (
    <p class="loading" role="status">
      Loading {what} …
    </p>
  );
}
