// The state of a corpus's page: all of it follows from the address and the columns, each part computed when it is looked at.
import { computed, effect, type ReadonlySignal, signal } from "@preact/signals";
import type { RouteMeta } from "../../api";
import type { Corpus } from "../../core/corpus";
import { type Cut, cutOf, parseCut, SIDES, sameCut, UNCUT, usualSides } from "../../core/cut";
import { applyFilter, type Filter, filterText, parseFilters } from "../../core/filters";
import { number, short } from "../../core/numbers";
import { byCategory, byQuarter, type Division, type Stratum, sidesAt, strataOf, totals } from "../../core/split";
import { countUpTo } from "../../core/statistics";
import { Tags } from "../../core/tags";
import { parseWeights, rlWeights, sidesByWeights, type Weights, weightsOf } from "../../core/weights";
import { param, set } from "../../router";
import { isText, type LoadedColumn, type NumericColumn } from "../../source/columns";
import { problemOf } from "../../source/failed";

export type Order = NonNullable<RouteMeta["order"]>;

const NO_OVERRIDES: ReadonlyMap<number, number> = new Map();

export class CorpusState {
  readonly tags: Tags;
  /** Columns of the route that is looked at. */
  readonly routeColumns = signal<ReadonlyMap<string, LoadedColumn>>(new Map());
  /** Rows that a search in all texts found. */
  readonly found = signal<{ q: string; rows: Uint32Array } | null>(null);
  readonly selected = signal<ReadonlySet<number>>(new Set());
  private readonly sortedValues = new Map<NumericColumn, Float64Array>();
  private readonly divisions = new Map<LoadedColumn, Division>();
  private lowered: { of: LoadedColumn | undefined; texts: string[] } | undefined;

  constructor(readonly corpus: Corpus) {
    const sha = corpus.meta.manifest.corpus_sha256;
    this.tags = new Tags(typeof sha === "string" && sha ? sha.slice(0, 16) : corpus.meta.id);
    effect(() => {
      // What the first letter of a search would wait for.
      if (corpus.complete.value) window.setTimeout(() => this.searchable(), 400);
    });
    effect(() => {
      const route = this.route.value;
      if (!route) {
        this.routeColumns.value = new Map();
        return;
      }
      corpus.route(route).then(
        (columns) => {
          if (this.route.peek() === route) this.routeColumns.value = columns;
        },
        (error) => {
          corpus.problem.value = problemOf(error);
        },
      );
    });
  }

  // --- what is cut

  readonly route: ReadonlySignal<RouteMeta | null> = computed(
    () => this.corpus.routes.value.find((route) => route.id === param("route")) ?? null,
  );

  /** The name of the column that is cut: a metric, or `score` of the route. */
  readonly metric = computed(() => {
    if (this.route.value && this.routeColumns.value.has("score")) return "score";
    const wanted = param("m");
    const { metrics } = this.corpus.meta;
    return wanted && this.corpus.columns.value.has(wanted) ? wanted : metrics[0];
  });

  readonly score = computed(() => this.column(this.metric.value) as NumericColumn | undefined);

  readonly ascending = computed(() => (this.score.value ? this.sorted(this.score.value) : new Float64Array()));

  private readonly routedBy = computed(() => this.route.value && weightsOf(this.route.value));

  /** Weights in place of sides: of the address, which may also say `none`, or the route's. */
  readonly weights = computed<Weights | null>(() => {
    const form = param("w");
    return form === undefined ? this.routedBy.value : parseWeights(form, param("t"));
  });

  /** Of the scores, in which both sets are to be written: of the address, which may also say `corpus`, or the route's. */
  readonly order = computed<Order | null>(() => {
    const wanted = param("order");
    if (this.weights.value) return null;
    if (wanted === undefined) return this.route.value?.order ?? null;
    return wanted === "ascending" || wanted === "descending" ? wanted : null;
  });

  /** The route's cut, or the median: where nobody has moved it. */
  readonly given = computed<Cut>(() =>
    this.route.value && !this.route.value.weights
      ? cutOf(this.route.value)
      : { at: [this.median.value], sides: usualSides(1) },
  );

  readonly cut = computed<Cut>(() =>
    this.weights.value ? UNCUT : (parseCut(param("cut"), param("sides")) ?? this.given.value),
  );

  /** Whether the route is shown as it was made. */
  readonly isAsRouted = computed(() => {
    const route = this.route.value;
    if (!route || String(this.order.value) !== String(route.order)) return false;
    const [now, then] = [this.weights.value, this.routedBy.value];
    return now || then
      ? now?.form === then?.form && now?.temperature === then?.temperature
      : sameCut(this.cut.value, this.given.value);
  });

  readonly median = computed(() => medianOf(this.ascending.value));

  /** By row, the side that an override of the route says. */
  readonly overrides = computed(() => {
    const [side, cut] = [this.routeColumns.value.get("side"), this.routeColumns.value.get("cut")] as (
      | NumericColumn
      | undefined
    )[];
    const reason = this.routeColumns.value.get("reason");
    if (!this.route.value || !side || !cut) return NO_OVERRIDES;
    const result = new Map<number, number>();
    const codes = side.values!.map((name) => SIDES.indexOf(name as "sft"));
    for (let row = 0; row < side.data.length; row++) {
      const given = reason && isText(reason) ? reason.at(row) !== "" : side.data[row] !== cut.data[row];
      if (given) result.set(row, codes[side.data[row]]);
    }
    return result;
  });

  /** RL's weights, where weights take the place of sides. */
  private readonly rlWeights = computed(() => {
    const [score, weights] = [this.score.value, this.weights.value];
    return score && weights ? rlWeights(score.data, weights) : null;
  });

  readonly sides = computed(() => {
    const score = this.score.value;
    if (this.rlWeights.value) return sidesByWeights(this.rlWeights.value, this.overrides.value);
    return score ? sidesAt(score.data, this.cut.value, this.overrides.value) : new Uint8Array(this.corpus.n).fill(1);
  });

  /** Shares of the scores in the ranges between the cuts, lowest first. */
  readonly shares = computed(() => {
    const ascending = this.ascending.value;
    const below = [0, ...this.cut.value.at.map((at) => countUpTo(ascending, at)), ascending.length];
    return below.slice(1).map((end, i) => (end - below[i]) / Math.max(1, ascending.length));
  });

  /** Scores by which the corpus may be cut: of norms as they are, of the pass, then of scaled norms. */
  readonly metrics = computed(() => {
    const columns = this.corpus.columns.value;
    const { metrics } = this.corpus.meta;
    const scaled = [...columns.values()].filter((column) => column.kind === "metric" && !metrics.includes(column.name));
    return [...metrics, ...scaled.map((column) => column.name)].filter((name) => columns.has(name));
  });

  readonly totals = computed(() => totals(this.sides.value, this.data("n_tokens"), this.data("n_response_tokens")));

  readonly shownTotals = computed(() =>
    totals(this.sides.value, this.data("n_tokens"), this.data("n_response_tokens"), this.mask.value),
  );

  // --- columns

  /** A column of the corpus, of the route, or one that the page computes. */
  column(name: string): LoadedColumn | undefined {
    if (name === "side") return this.sideColumn.value;
    return this.corpus.columns.value.get(name) ?? this.routeColumns.value.get(name);
  }

  numeric(name: string): NumericColumn | undefined {
    const column = this.column(name);
    return column && !isText(column) ? column : undefined;
  }

  private data(name: string) {
    return this.corpus.numeric(name)?.data;
  }

  private readonly sideColumn = computed<NumericColumn>(() => ({
    name: "side",
    label: "side",
    kind: "category",
    dtype: "u8",
    length: this.corpus.n,
    start: 0,
    size: this.corpus.n,
    values: [...SIDES],
    data: this.sides.value,
  }));

  label(name: string): string {
    return this.column(name)?.label ?? name;
  }

  /** All columns with numbers, metrics first. */
  readonly numbers = computed(() =>
    [...this.corpus.columns.value.values(), ...this.routeColumns.value.values()].filter(
      (column): column is NumericColumn => column.kind === "metric" || column.kind === "measure",
    ),
  );

  readonly categories = computed(() =>
    [...this.corpus.columns.value.values()].filter(
      (column): column is NumericColumn => column.kind === "category" && (column as NumericColumn).values!.length > 0,
    ),
  );

  /** Ascending values without NaN. */
  sorted(column: NumericColumn): Float64Array {
    let found = this.sortedValues.get(column);
    if (!found) {
      const values = Float64Array.from(column.data).sort();
      let n = values.length;
      while (n > 0 && Number.isNaN(values[n - 1])) n--;
      found = values.subarray(0, n);
      this.sortedValues.set(column, found);
    }
    return found;
  }

  // --- what is shown

  readonly filters = computed(() => parseFilters(param("f")));

  setFilters(filters: readonly Filter[]): void {
    set({ f: filterText(filters) }, true);
  }

  readonly mask = computed(() => this.maskWithout(null));

  readonly isFiltered = computed(
    () => this.filters.value.length > 0 || Boolean(param("q")) || this.found.value !== null,
  );

  /** A byte per row: whether all filters leave it, except those on one column. */
  private maskWithout(column: string | null): Uint8Array {
    const mask = new Uint8Array(this.corpus.n).fill(1);
    for (const filter of this.filters.value) {
      if (filter.kind !== "lasso" && filter.column === column) continue;
      if (filter.kind === "in" && filter.column === "tag") this.keepTagged(mask, filter.values);
      else applyFilter(mask, filter, (name) => this.column(name));
    }
    this.keepFound(mask);
    return mask;
  }

  private keepTagged(mask: Uint8Array, names: readonly string[]): void {
    const all = this.tags.all.value;
    const ids = new Set(names.flatMap((name) => [...(all.get(name) ?? [])]));
    const rows = new Set([...ids].map((id) => this.corpus.row(id)));
    for (let i = 0; i < mask.length; i++) if (!rows.has(i)) mask[i] = 0;
  }

  private keepFound(mask: Uint8Array): void {
    const q = param("q")?.toLowerCase();
    if (q) {
      const texts = this.searchable();
      for (let i = 0; i < mask.length; i++) if (mask[i] && !texts[i].includes(q)) mask[i] = 0;
    }
    const found = this.found.value;
    if (found) {
      const keep = new Uint8Array(mask.length);
      for (const row of found.rows) keep[row] = 1;
      for (let i = 0; i < mask.length; i++) mask[i] &= keep[i];
    }
  }

  /** Ids and beginnings of texts, in small letters. */
  private searchable(): string[] {
    const preview = this.corpus.text("preview");
    if (this.lowered?.of !== preview || !this.lowered) {
      const texts = Array.from({ length: this.corpus.n }, (_, row) =>
        `${this.corpus.id(row)} ${preview?.at(row) ?? ""}`.toLowerCase(),
      );
      this.lowered = { of: preview, texts };
    }
    return this.lowered.texts;
  }

  readonly nShown = computed(() => {
    let n = 0;
    for (const keep of this.mask.value) n += keep;
    return n;
  });

  readonly sort = computed(() => {
    const text = param("sort") || `-${this.metric.value}`;
    return text.startsWith("-") ? { name: text.slice(1), down: true } : { name: text, down: false };
  });

  /** Rows that are shown, as they are sorted. */
  readonly rows = computed(() => {
    const { name, down } = this.sort.value;
    const mask = this.mask.value;
    const order = this.orderBy(name);
    const rows = new Uint32Array(this.nShown.value);
    let at = 0;
    if (!down) for (const row of order) if (mask[row]) rows[at++] = row;
    if (!down) return rows;
    // What has no value stays last.
    const column = this.column(name);
    const lacking = (row: number) => column !== undefined && !isText(column) && Number.isNaN(column.data[row]);
    let end = order.length;
    while (end > 0 && lacking(order[end - 1])) end--;
    for (let i = end - 1; i >= 0; i--) if (mask[order[i]]) rows[at++] = order[i];
    for (let i = end; i < order.length; i++) if (mask[order[i]]) rows[at++] = order[i];
    return rows;
  });

  private orderBy(name: string): Uint32Array {
    if (this.corpus.columns.value.has(name)) return this.corpus.order(name);
    const column = this.numeric(name);
    const rows = Uint32Array.from({ length: this.corpus.n }, (_, i) => i);
    return column ? rows.sort((a, b) => column.data[a] - column.data[b] || a - b) : rows;
  }

  /** Rows that are shown, in the corpus's order. */
  readonly shownRows = computed(() => {
    const rows = new Uint32Array(this.nShown.value);
    let at = 0;
    const mask = this.mask.value;
    for (let i = 0; i < mask.length; i++) if (mask[i]) rows[at++] = i;
    return rows;
  });

  /** Ascending scores of the rows that are shown. */
  readonly shownScores = computed(() => {
    const score = this.score.value;
    if (!score || !this.isFiltered.value) return this.ascending.value;
    return Float64Array.from(this.shownRows.value, (row) => score.data[row])
      .filter((value) => !Number.isNaN(value))
      .sort();
  });

  // --- strata

  readonly by = computed(() => {
    const wanted = param("by");
    if (wanted && this.column(wanted)) return wanted;
    const varied = this.categories.value.filter((column) => column.values!.length > 1);
    const usual = varied.find((column) => column.name === "task_type") ?? varied[0];
    return usual?.name ?? (this.column("n_response_tokens") ? "n_response_tokens" : this.metric.value);
  });

  readonly division = computed(() => {
    const column = this.numeric(this.by.value);
    if (!column) return null;
    let found = this.divisions.get(column);
    if (!found) {
      const text = column.dtype.startsWith("f") ? number : short;
      found = column.kind === "category" ? byCategory(column) : byQuarter(column.data, this.sorted(column), text);
      this.divisions.set(column, found);
    }
    return found;
  });

  private readonly strataMask = computed(() => this.maskWithout(this.by.value));

  readonly strata = computed<Stratum[]>(() => {
    const division = this.division.value;
    return division ? strataOf(division, this.sides.value, this.strataMask.value) : [];
  });
}

/** As `gradprism route` takes it: half-way between the two middle values, which it separates. */
export function medianOf(ascending: Float64Array): number {
  const n = ascending.length;
  if (n === 0) return 0;
  const [low, high] = [ascending[Math.floor((n - 1) / 2)], ascending[Math.floor(n / 2)]];
  const middle = low + (high - low) / 2;
  return middle < high ? middle : low;
}

/** The cut above which that share lies, as `gradprism route --rl-share` takes it. */
export function cutAtShare(ascending: Float64Array, share: number): number {
  const n = ascending.length;
  const above = Math.floor(share * n + 1e-9);
  if (above <= 0) return ascending[n - 1];
  if (above >= n) return ascending[0] - Math.max(1e-12, Math.abs(ascending[0]) * 1e-12);
  const [low, high] = [ascending[n - above - 1], ascending[n - above]];
  const middle = low + (high - low) / 2;
  return middle < high ? middle : low;
}
