// Two scores of the same trajectories: who is on which side of both, each cut at the same share.
import type { Corpus } from "./corpus";
import { correlation, ranks } from "./statistics";

/** What became of a trajectory from the first to the second, as a code. */
export const MOVES = ["both SFT", "both RL", "SFT → RL", "RL → SFT"] as const;

export interface Pairs {
  /** Rows of the first and of the second, by pair. */
  a: Uint32Array;
  b: Uint32Array;
}

/** Pairs of trajectories of one id, in the order of the first. */
export function joined(first: Corpus, second: Corpus): Pairs {
  if (first === second) {
    const rows = Uint32Array.from({ length: first.n }, (_, i) => i);
    return { a: rows, b: rows };
  }
  const [a, b]: [number[], number[]] = [[], []];
  for (let row = 0; row < first.n; row++) {
    const other = second.row(first.id(row));
    if (other === undefined) continue;
    a.push(row);
    b.push(other);
  }
  return { a: Uint32Array.from(a), b: Uint32Array.from(b) };
}

export interface Comparison {
  x: Float64Array;
  y: Float64Array;
  xRanks: Float64Array;
  yRanks: Float64Array;
  cuts: readonly [number, number];
  moves: Uint8Array;
  counts: readonly [number, number, number, number];
  spearman: number | null;
  sameSide: number;
  jaccard: number | null;
}

export function compared(x: Float64Array, y: Float64Array, cuts: readonly [number, number]): Comparison {
  const moves = new Uint8Array(x.length);
  const counts: [number, number, number, number] = [0, 0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    const [first, second] = [x[i] > cuts[0], y[i] > cuts[1]];
    moves[i] = first ? (second ? 1 : 3) : second ? 2 : 0;
    counts[moves[i]]++;
  }
  const [xRanks, yRanks] = [ranks(x), ranks(y)];
  const either = counts[1] + counts[2] + counts[3];
  return {
    ...{ x, y, xRanks, yRanks, cuts, moves, counts },
    spearman: correlation(xRanks, yRanks),
    sameSide: (counts[0] + counts[1]) / Math.max(1, x.length),
    jaccard: either ? counts[1] / either : null,
  };
}

export interface MovedStratum {
  label: string;
  n: number;
  toRl: number;
  toSft: number;
  /** Shares to RL before and after. */
  before: number;
  after: number;
}

/** Who moved, by a label of each pair. */
export function movedBy(labels: readonly string[], moves: Uint8Array): MovedStratum[] {
  const found = new Map<string, [number, number, number, number]>();
  labels.forEach((label, i) => {
    const counts = found.get(label) ?? [0, 0, 0, 0];
    counts[moves[i]]++;
    found.set(label, counts);
  });
  return [...found].map(([label, [, rl, toRl, toSft]], _, all) => {
    const n = all.find(([name]) => name === label)![1].reduce((s, v) => s + v, 0);
    return { label, n, toRl, toSft, before: (rl + toSft) / n, after: (rl + toRl) / n };
  });
}
