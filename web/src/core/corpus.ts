// A corpus in the page: all of its columns, and what is computed of them once.
import { signal } from "@preact/signals";
import { type CorpusMeta, type Problem, paths, type RouteMeta } from "../api";
import {
  categoryAt,
  decodeColumns,
  isText,
  type LoadedColumn,
  type NumericColumn,
  type TextColumn,
} from "../source/columns";
import { problemOf } from "../source/failed";
import { source } from "../source/source";
import { order, ranks } from "./statistics";

export class Corpus {
  readonly n: number;
  /** By name; grows when the further columns come. */
  readonly columns = signal<ReadonlyMap<string, LoadedColumn>>(new Map());
  readonly complete = signal(false);
  readonly problem = signal<Problem | null>(null);
  readonly routes = signal<readonly RouteMeta[]>([]);
  private readonly orders = new Map<string, Uint32Array>();
  private readonly rankings = new Map<string, Float64Array>();
  private readonly routeColumns = new Map<string, Promise<ReadonlyMap<string, LoadedColumn>>>();
  private nShared: number | undefined;
  private ids: ReadonlyMap<string, number> | undefined;

  constructor(readonly meta: CorpusMeta) {
    this.n = meta.n;
    this.routes.value = meta.routes;
  }

  add(columns: readonly LoadedColumn[]): void {
    this.columns.value = new Map([...this.columns.value, ...columns.map((column) => [column.name, column] as const)]);
  }

  numeric(name: string): NumericColumn | undefined {
    const column = this.columns.value.get(name);
    return column && !isText(column) ? column : undefined;
  }

  text(name: string): TextColumn | undefined {
    const column = this.columns.value.get(name);
    return column && isText(column) ? column : undefined;
  }

  id(row: number): string {
    return this.text("id")?.at(row) ?? String(row);
  }

  /** An id without the folders that all ids begin with. */
  shortId(row: number): string {
    const id = this.id(row);
    return this.shared > 0 ? `…${id.slice(this.shared)}` : id;
  }

  /** How many letters all ids begin with, up to a slash. */
  private get shared(): number {
    if (this.nShared === undefined) {
      let prefix = this.n > 1 ? this.id(0) : "";
      for (let row = 1; row < this.n && prefix; row++) {
        const id = this.id(row);
        while (!id.startsWith(prefix))
          prefix = prefix.slice(0, Math.max(0, prefix.lastIndexOf("/", prefix.length - 2) + 1));
      }
      this.nShared = prefix.endsWith("/") ? prefix.length - 1 : 0;
    }
    return this.nShared;
  }

  category(name: string, row: number): string | null {
    const column = this.numeric(name);
    return column ? categoryAt(column, row) : null;
  }

  /** The row of an id, or undefined; of several the first. */
  row(id: string): number | undefined {
    if (!this.ids) {
      const ids = new Map<string, number>();
      for (let row = this.n - 1; row >= 0; row--) ids.set(this.id(row), row);
      this.ids = ids;
    }
    return this.ids.get(id);
  }

  /** Rows in ascending order of a column. */
  order(name: string): Uint32Array {
    let found = this.orders.get(name);
    if (!found) {
      found = this.sorted(name);
      this.orders.set(name, found);
    }
    return found;
  }

  /** Average ranks of a column, from 1. */
  ranks(name: string): Float64Array {
    let found = this.rankings.get(name);
    if (!found) {
      found = ranks(this.numeric(name)!.data, this.order(name));
      this.rankings.set(name, found);
    }
    return found;
  }

  private sorted(name: string): Uint32Array {
    const column = this.columns.value.get(name);
    if (!column) return Uint32Array.from({ length: this.n }, (_, i) => i);
    if (isText(column)) return orderOfTexts(Array.from({ length: this.n }, (_, row) => column.at(row)));
    if (column.kind !== "category") return order(column.data);
    // By the categories' names, not by their codes; what has none comes last.
    const values = column.values ?? [];
    const place = new Float64Array(values.length);
    [...values.keys()].sort((a, b) => (values[a] < values[b] ? -1 : 1)).forEach((code, i) => (place[code] = i));
    return order(Float64Array.from(column.data, (code) => place[code] ?? Number.NaN));
  }

  /** Columns of a route, by name. */
  route(route: RouteMeta): Promise<ReadonlyMap<string, LoadedColumn>> {
    const key = `${route.id} ${route.version}`;
    let found = this.routeColumns.get(key);
    if (!found) {
      found = source
        .bytes(paths.route(this.meta.id, route.id, route.version))
        .then((bytes) => new Map(decodeColumns(bytes).columns.map((column) => [column.name, column])));
      this.routeColumns.set(key, found);
    }
    return found;
  }
}

function orderOfTexts(texts: readonly string[]): Uint32Array {
  const rows = Uint32Array.from(texts, (_, i) => i);
  return rows.sort((a, b) => (texts[a] < texts[b] ? -1 : texts[a] > texts[b] ? 1 : a - b));
}

const loaded = new Map<string, Promise<Corpus>>();

/** The corpus of that id; once it is there, its first columns are. The others, and the texts' beginnings, come by themselves. */
export function loadCorpus(id: string): Promise<Corpus> {
  let corpus = loaded.get(id);
  if (!corpus) {
    corpus = load(id);
    corpus.catch(() => loaded.delete(id));
    loaded.set(id, corpus);
  }
  return corpus;
}

/** Forgets a corpus, so that it is read again. */
export function forgetCorpus(id: string): void {
  loaded.delete(id);
}

async function load(id: string): Promise<Corpus> {
  const meta = await source.json<CorpusMeta>(paths.corpus(id));
  const corpus = new Corpus(meta);
  corpus.add(decodeColumns(await source.bytes(paths.columns(id, meta.version))).columns);
  void (async () => {
    try {
      for (const path of [paths.more(id, meta.version), paths.previews(id, meta.version)]) {
        corpus.add(decodeColumns(await source.bytes(path)).columns);
      }
      corpus.complete.value = true;
    } catch (error) {
      corpus.problem.value = problemOf(error);
    }
  })();
  return corpus;
}
