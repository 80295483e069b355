// Tags are a person's own marks, kept in this browser: by corpus, since a trajectory's id means the same in every probe of it.
import { signal } from "@preact/signals";

export class Tags {
  readonly all = signal<ReadonlyMap<string, ReadonlySet<string>>>(new Map());
  private readonly key: string;

  constructor(corpus: string) {
    this.key = `gradprism-tags-${corpus}`;
    try {
      const kept = JSON.parse(localStorage.getItem(this.key) ?? "{}") as Record<string, string[]>;
      this.all.value = new Map(Object.entries(kept).map(([name, ids]) => [name, new Set(ids)]));
    } catch {
      // Without storage tags last as long as the page.
    }
  }

  add(name: string, ids: Iterable<string>): void {
    this.change(name, new Set([...(this.all.value.get(name) ?? []), ...ids]));
  }

  remove(name: string, ids: Iterable<string>): void {
    const left = new Set(this.all.value.get(name) ?? []);
    for (const id of ids) left.delete(id);
    this.change(name, left);
  }

  private change(name: string, ids: ReadonlySet<string>): void {
    const next = new Map(this.all.value);
    if (ids.size) next.set(name, ids);
    else next.delete(name);
    this.all.value = next;
    try {
      localStorage.setItem(this.key, JSON.stringify(Object.fromEntries([...next].map(([k, v]) => [k, [...v]]))));
    } catch {
      // as above
    }
  }
}
