// The lines of a shell or of Python that make what a page shows.
import type { CorpusMeta, RouteMeta } from "../api";
import type { Command } from "../ui/command";

/** A word as a POSIX shell takes it. */
export const quoted = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
const text = (value: string): string => JSON.stringify(value);

const NORMALISATIONS = ["per_parameter", "per_weight_norm"];

/** A metric column's metric, and how its norms were scaled: `gini_per_parameter` is `gini` of norms per parameter. */
export function metricOf(column: string): { metric: string; normalise: string } {
  for (const normalise of NORMALISATIONS) {
    for (const separator of ["_", ".", " ", "/", ":"]) {
      if (column.endsWith(separator + normalise)) return { metric: column.slice(0, -normalise.length - 1), normalise };
    }
  }
  return { metric: column, normalise: "none" };
}

export interface Cut {
  column: string;
  low: number;
  high: number;
  /** Where nobody has moved the cut from the median. */
  atMedian: boolean;
}

export function routeCommands(meta: CorpusMeta, cut: Cut, route: RouteMeta | null): Command[] {
  const { metric, normalise } = route ? route : metricOf(cut.column);
  const policy = route?.policy ?? "concentration";
  const [high, low] = [String(cut.high), String(cut.low)];
  const shell = [`gradprism route ${quoted(meta.path)}`, `--metric ${quoted(metric)}`];
  const python = [text(meta.path), text(metric)];
  if (policy !== "concentration") {
    shell.push(`--policy ${quoted(policy)}`);
    python.push(`policy=${text(policy)}`);
  }
  if (normalise !== "none") {
    shell.push(`--normalise ${normalise}`);
    python.push(`normalise=${text(normalise)}`);
  }
  if (!cut.atMedian) {
    shell.push(`--threshold ${high}`);
    python.push(`threshold=${high}`);
  }
  if (cut.low !== cut.high) {
    shell.push(`--sft-threshold ${low}`);
    python.push(`sft_threshold=${low}`);
  }
  return [
    {
      label: "Route so, in a shell",
      text: `${shell.join(" ")} --out ${quoted(`${meta.name.split("/").at(-1) || "route"}-${metric}`)}`,
    },
    { label: "In Python", text: `import gradprism as gp\n\nroutes = gp.route(${python.join(", ")})\nroutes.frame` },
    { label: "Audit", text: `gradprism audit ${quoted(meta.path)} --metric ${quoted(metric)}` },
    { label: "This page as one file", text: `gradprism studio ${quoted(meta.path)} --export studio.html` },
  ];
}
