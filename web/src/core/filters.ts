// Filters of a corpus's rows, as they stand in the address: `gini=0.3..0.4;task_type=look|heat;lasso=gini,loss:0.1,2.5,…`.
import type { LoadedColumn } from "../source/columns";
import { isText } from "../source/columns";
import { inside } from "./geometry";
import { number } from "./numbers";

export type Filter =
  | { kind: "range"; column: string; low: number; high: number }
  | { kind: "in"; column: string; values: readonly string[] }
  | { kind: "lasso"; x: string; y: string; polygon: readonly number[] };

const MISSING = "∅";

export function parseFilters(text: string | undefined): Filter[] {
  return (text ?? "").split(";").flatMap((part): Filter[] => {
    const at = part.indexOf("=");
    if (at <= 0) return [];
    const [column, value] = [unescaped(part.slice(0, at)), part.slice(at + 1)];
    const range = /^(-?[\d.eE+-]*)\.\.(-?[\d.eE+-]*)$/.exec(value);
    if (column === "lasso") {
      const [axes, corners = ""] = value.split(":");
      const [x, y] = axes.split(",").map(unescaped);
      const polygon = corners.split(",").map(Number);
      return x && y && polygon.length >= 6 && polygon.every(Number.isFinite) ? [{ kind: "lasso", x, y, polygon }] : [];
    }
    if (range) {
      const [low, high] = [
        range[1] === "" ? Number.NEGATIVE_INFINITY : Number(range[1]),
        range[2] === "" ? Number.POSITIVE_INFINITY : Number(range[2]),
      ];
      return Number.isNaN(low) || Number.isNaN(high) ? [] : [{ kind: "range", column, low, high }];
    }
    return [{ kind: "in", column, values: value.split("|").map(unescaped) }];
  });
}

export function filterText(filters: readonly Filter[]): string {
  return filters
    .map((filter) => {
      if (filter.kind === "lasso") {
        return `lasso=${escaped(filter.x)},${escaped(filter.y)}:${filter.polygon.map((v) => Number(v.toPrecision(4))).join(",")}`;
      }
      if (filter.kind === "in") return `${escaped(filter.column)}=${filter.values.map(escaped).join("|")}`;
      const end = (value: number) => (Number.isFinite(value) ? String(Number(value.toPrecision(7))) : "");
      return `${escaped(filter.column)}=${end(filter.low)}..${end(filter.high)}`;
    })
    .join(";");
}

/** With a filter in the place of those on the same column; where it is there already, without it. */
export function toggled(filters: readonly Filter[], filter: Filter): Filter[] {
  const others = filters.filter((other) => key(other) !== key(filter));
  const same = filters.some((other) => filterText([other]) === filterText([filter]));
  return same ? others : [...others, filter];
}

const key = (filter: Filter): string => (filter.kind === "lasso" ? "lasso" : filter.column);

/** As its chip says it; `label` gives a column's name to people. */
export function describe(filter: Filter, label: (column: string) => string): string {
  if (filter.kind === "lasso") return `lasso in ${label(filter.x)} × ${label(filter.y)}`;
  if (filter.kind === "in")
    return `${label(filter.column)}: ${filter.values.map((v) => (v === MISSING ? "none" : v)).join(" or ")}`;
  const { low, high } = filter;
  if (low === Number.NEGATIVE_INFINITY) return `${label(filter.column)} ≤ ${number(high)}`;
  if (high === Number.POSITIVE_INFINITY) return `${label(filter.column)} ≥ ${number(low)}`;
  return `${label(filter.column)} ${number(low)} to ${number(high)}`;
}

export const missingValue = MISSING;

/** Clears, in `mask` (a byte per row), the rows that a filter leaves out. A filter on a column that is not there leaves all. */
export function applyFilter(
  mask: Uint8Array,
  filter: Filter,
  column: (name: string) => LoadedColumn | undefined,
): void {
  if (filter.kind === "lasso") {
    const [x, y] = [column(filter.x), column(filter.y)];
    if (!x || !y || isText(x) || isText(y)) return;
    for (let i = 0; i < mask.length; i++) if (mask[i] && !inside(filter.polygon, x.data[i], y.data[i])) mask[i] = 0;
    return;
  }
  const found = column(filter.column);
  if (!found) return;
  if (filter.kind === "range") {
    if (isText(found)) return;
    const { data } = found;
    for (let i = 0; i < mask.length; i++) if (!(data[i] >= filter.low && data[i] <= filter.high)) mask[i] = 0;
    return;
  }
  const wanted = new Set(filter.values);
  if (isText(found)) {
    for (let i = 0; i < mask.length; i++) if (mask[i] && !wanted.has(found.at(i))) mask[i] = 0;
    return;
  }
  const { data, values = [] } = found;
  const keep = Uint8Array.from(values, (value) => Number(wanted.has(value)));
  const none = wanted.has(MISSING) ? 1 : 0;
  for (let i = 0; i < mask.length; i++) if (!(data[i] < keep.length ? keep[data[i]] : none)) mask[i] = 0;
}

const escaped = (text: string): string =>
  text.replace(/[%;=|,:]|\.\./g, (part) => encodeURIComponent(part).replaceAll(".", "%2E"));
function unescaped(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
