// The lines of a shell or of Python that make what a page shows.
import type { CorpusMeta, RouteMeta } from "../api";
import type { Command } from "../ui/command";
import { type Cut, SIDES, usualSides } from "./cut";

/** A word as a POSIX shell takes it. */
export const quoted = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
const text = (value: string): string => JSON.stringify(value);

/** A metric column's metric, and how its norms were scaled: `gini/per_parameter` is `gini` of norms per parameter. */
function metricOf(column: string): { metric: string; normalise: string } {
  const [metric, normalise = "none"] = column.split("/");
  return { metric, normalise };
}

/** `cut` is null where it is the median, which both lines take by themselves. */
export function routeCommands(meta: CorpusMeta, column: string, cut: Cut | null, route: RouteMeta | null): Command[] {
  const { metric, normalise } = route ? route : metricOf(column);
  const shell = [`gradprism route ${quoted(meta.path)}`, `--metric ${quoted(metric)}`];
  const python = [text(meta.path), text(metric)];
  const add = (option: string, name: string, value: string, code = value) => {
    shell.push(`--${option} ${quoted(value)}`);
    python.push(`${name}=${code}`);
  };
  if (route && route.policy !== "concentration") add("policy", "policy", route.policy, text(route.policy));
  if (normalise !== "none") add("normalise", "normalise", normalise, text(normalise));
  for (const stratum of route?.within ?? []) shell.push(`--within ${quoted(stratum)}`);
  if (route?.within.length) python.push(`within=(${route.within.map((stratum) => `${text(stratum)},`).join(" ")})`);
  if (cut && String(cut.sides) === String(usualSides(1))) {
    add("threshold", "threshold", String(cut.at[0]));
  } else if (cut) {
    const sides = cut.sides.map((code) => SIDES[code]);
    add("cuts", "cuts", cut.at.join(","), `(${cut.at.map((at) => `${at},`).join(" ")})`);
    add("sides", "sides", sides.join(","), `(${sides.map(text).join(", ")})`);
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

/** What an override does, in Python; `side` is null where overrides are taken back. */
export function overrideCommand(
  probe: string,
  route: string,
  ids: readonly string[],
  side: string | null,
  reason: string,
): Command {
  const given = [text(route), JSON.stringify(ids), side === null ? "None" : text(side), text(reason), text(probe)];
  return {
    label: "The same in Python",
    text: `import gradprism as gp\n\ngp.Routes.override_folder(${given.join(", ")})`,
  };
}
