// What was found on disk, asked again every few seconds while the page is looked at.
import { computed, signal } from "@preact/signals";
import { type Entry, type Index, type Problem, paths } from "../api";
import { problemOf } from "../source/failed";
import { source } from "../source/source";

export const index = signal<Index | null>(null);
export const indexProblem = signal<Problem | null>(null);
export const entries = computed<readonly Entry[]>(() => index.value?.entries ?? []);

export const corpusEntry = (id: string): Entry | undefined => entries.value.find((entry) => entry.corpus === id);
export const runEntry = (id: string): Entry | undefined =>
  entries.value.find((entry) => entry.run === id || entry.results === id);

const EVERY = 4000; // ms

export async function ask(): Promise<void> {
  try {
    const next = await source.json<Index>(paths.index());
    indexProblem.value = null;
    // A new object for the same content would draw everything again.
    if (JSON.stringify(next) !== JSON.stringify(index.value)) index.value = next;
  } catch (error) {
    indexProblem.value = problemOf(error);
  }
}

export function follow(): void {
  void ask();
  if (!source.live) return;
  window.setInterval(() => document.visibilityState === "visible" && void ask(), EVERY);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && void ask());
}
