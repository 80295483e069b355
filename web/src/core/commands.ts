// The lines of a shell or of Python that make what a page shows.
import type { CorpusMeta, RouteMeta } from "../api";
import type { Command } from "../ui/command";
import { type Cut, SIDES, usualSides } from "./cut";
import type { Weights } from "./weights";

/** A word as a POSIX shell takes it. */
export const quoted = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
const text = (value: string): string => JSON.stringify(value);

/** A metric column's metric, and how its norms were scaled: `gini/per_parameter` is `gini` of norms per parameter. */
function metricOf(column: string): { metric: string; normalise: string } {
  const [metric, normalise = "none"] = column.split("/");
  return { metric, normalise };
}

export interface Chosen {
  /** Null where nobody has moved it: the route's, or the median, which `gradprism route` takes by itself. */
  cut: Cut | null;
  /** Of the ranges between the cuts that are shown, lowest first. */
  shares: readonly number[];
  weights: Weights | null;
  order: RouteMeta["order"];
}

/** Policies whose equal scores are drawn apart by chance, unless they are cut at numbers: these are then on another scale. */
const DRAWN = ["pass_rate", "learnability"];
const FILES = {
  pass_rates: { option: "pass-rates", name: "EPISODES.jsonl", what: "pass rates" },
  target: { option: "target", name: "TARGET", what: "target" },
};

export function routeCommands(meta: CorpusMeta, column: string, chosen: Chosen, route: RouteMeta | null): Command[] {
  const { metric, normalise } = route ? route : metricOf(column);
  const shell = [`gradprism route ${quoted(meta.path)}`, `--metric ${quoted(metric)}`];
  const python = [text(meta.path), text(metric)];
  const add = (
    option: string,
    value: string | number,
    code = typeof value === "number" ? String(value) : text(value),
  ) => {
    shell.push(`--${option.replaceAll("_", "-")} ${quoted(String(value))}`);
    python.push(`${option}=${code}`);
  };
  const several = (option: string, values: readonly (number | string)[]) =>
    add(option, values.join(","), `(${values.map((value) => `${JSON.stringify(value)},`).join(" ")})`);
  const sidesOf = (cut: Cut) =>
    several(
      "sides",
      cut.sides.map((code) => SIDES[code]),
    );
  if (route && route.policy !== "concentration") add("policy", route.policy);
  if (normalise !== "none") add("normalise", normalise);
  for (const stratum of route?.within ?? []) shell.push(`--within ${quoted(stratum)}`);
  if (route?.within.length) python.push(`within=(${route.within.map((stratum) => `${text(stratum)},`).join(" ")})`);
  for (const kind of route?.asks_for ?? []) {
    shell.push(`--${FILES[kind].option} ${FILES[kind].name}`);
    python.push(`${kind}=${text(FILES[kind].name)}`);
  }
  if (route?.seed) add("seed", route.seed);
  if (route?.per_turn) {
    shell.push("--per-turn");
    python.push("per_turn=True");
  }
  const { cut, shares, weights, order } = chosen;
  const byRule = route?.threshold_rule;
  const byShare = byRule === "median" || byRule === "quantile" || byRule === "shares";
  const drawn = route && byShare && DRAWN.includes(route.policy) && !route.within.length;
  const isUsual = cut && String(cut.sides) === String(usualSides(1));
  if (weights) {
    add("weights", weights.form);
    if (weights.temperature !== null) add("temperature", weights.temperature);
  } else if (cut && drawn && isUsual) {
    add("rl_share", shares[1]);
  } else if (cut && drawn) {
    several("shares", shares);
    sidesOf(cut);
  } else if (cut && isUsual) {
    add("threshold", cut.at[0]);
  } else if (cut) {
    several("cuts", cut.at);
    sidesOf(cut);
  } else if (route && byRule === "fixed") {
    add("threshold", route.threshold);
  } else if (route && byRule === "quantile" && route.rl_share !== null) {
    add("rl_share", route.rl_share);
  } else if (route && (byRule === "shares" || byRule === "cuts")) {
    if (byRule === "shares") several("shares", route.shares);
    else several("cuts", route.cuts);
    several("sides", route.sides);
  }
  if (order) add("order", order);
  const needs = (route?.asks_for ?? []).map((kind) => FILES[kind].what).join(" and ");
  const remarks = [needs && `with the ${needs} of then`, route?.n_overrides && "without its overrides"].filter(Boolean);
  const audit = [`gradprism audit ${quoted(meta.path)}`, `--metric ${quoted(metric)}`];
  if (normalise !== "none") audit.push(`--normalise ${quoted(normalise)}`);
  return [
    {
      label: `Route so, in a shell${remarks.length ? ` (${remarks.join(", ")})` : ""}`,
      text: `${shell.join(" ")} --out ${quoted(`${meta.name.split("/").at(-1) || "route"}-${metric}`)}`,
    },
    { label: "In Python", text: `import gradprism as gp\n\nroutes = gp.route(${python.join(", ")})\nroutes.frame` },
    { label: "Audit", text: audit.join(" ") },
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
