// What goes where at a cut: sides of rows, and what each side amounts to.
import type { Costs } from "../api";
import type { NumberArray, NumericColumn } from "../source/columns";
import type { Cut } from "./cut";

/** The side of each row: that of its score's range; what has no score goes to neither, overrides where they say. */
export function sidesAt(score: NumberArray, cut: Cut, overrides: ReadonlyMap<number, number>): Uint8Array {
  const sides = new Uint8Array(score.length);
  const { at } = cut;
  for (let i = 0; i < score.length; i++) {
    let range = 0;
    while (range < at.length && score[i] > at[range]) range++;
    sides[i] = Number.isNaN(score[i]) ? 1 : cut.sides[range];
  }
  for (const [row, side] of overrides) sides[row] = side;
  return sides;
}

export interface Total {
  n: number;
  tokens: number;
  response: number;
}

/** Of SFT alone, neither, RL alone, and both. */
export type Totals = [Total, Total, Total, Total];

const sum = (a: Total, b: Total): Total => ({
  n: a.n + b.n,
  tokens: a.tokens + b.tokens,
  response: a.response + b.response,
});

/** What SFT trains on, and what RL plays: what goes to both is in each. */
export const trained = ([sft, , rl, both]: Totals): { sft: Total; rl: Total } => ({
  sft: sum(sft, both),
  rl: sum(rl, both),
});

export function totals(sides: Uint8Array, tokens?: NumberArray, response?: NumberArray, mask?: Uint8Array): Totals {
  const n = [0, 0, 0, 0];
  const all = [0, 0, 0, 0];
  const own = [0, 0, 0, 0];
  for (let i = 0; i < sides.length; i++) {
    if (mask && !mask[i]) continue;
    const side = sides[i];
    n[side]++;
    if (tokens) all[side] += tokens[i];
    if (response) own[side] += response[i];
  }
  const of = (side: number): Total => ({ n: n[side], tokens: all[side], response: own[side] });
  return [of(0), of(1), of(2), of(3)];
}

export interface Stratum {
  label: string;
  /** The value of a category, or the range of a number. */
  value: string | readonly [number, number] | null;
  sides: [number, number, number, number];
  n: number;
}

/** How the rows are divided: a code per row, and what each code means. */
export interface Division {
  codes: Uint8Array | Uint16Array;
  strata: { label: string; value: Stratum["value"] }[];
}

export function byCategory(column: NumericColumn): Division {
  const values = column.values ?? [];
  const codes = new Uint16Array(column.data.length);
  let lacking = false;
  for (let i = 0; i < codes.length; i++) {
    const known = column.data[i] < values.length;
    codes[i] = known ? column.data[i] : values.length;
    lacking ||= !known;
  }
  const strata: Division["strata"] = values.map((value) => ({ label: value, value }));
  return { codes, strata: lacking ? [...strata, { label: "none", value: null }] : strata };
}

/** Quarters of a number: as even as ties allow. */
export function byQuarter(data: NumberArray, ascending: ArrayLike<number>, text: (value: number) => string): Division {
  const at = (share: number) => ascending[Math.min(ascending.length - 1, Math.floor(share * ascending.length))];
  const ends = [...new Set([at(0.25), at(0.5), at(0.75), ascending[ascending.length - 1]])];
  const codes = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) {
    let code = 0;
    while (code < ends.length - 1 && data[i] > ends[code]) code++;
    codes[i] = code;
  }
  const strata = ends.map((end, i) => {
    const above = i === 0 ? Number.NEGATIVE_INFINITY : nextUp(ends[i - 1]);
    const last = i === ends.length - 1;
    const label =
      i === 0 ? `up to ${text(end)}` : last ? `above ${text(ends[i - 1])}` : `${text(ends[i - 1])} to ${text(end)}`;
    return { label, value: [above, last ? Number.POSITIVE_INFINITY : end] as const };
  });
  return { codes, strata };
}

const nextUp = (value: number): number => (Number.isInteger(value) ? value + 1 : value * (1 + 1e-6 * Math.sign(value)));

export function strataOf(division: Division, sides: Uint8Array, mask: Uint8Array): Stratum[] {
  const found = division.strata.map(({ label, value }): Stratum => ({ label, value, sides: [0, 0, 0, 0], n: 0 }));
  for (let i = 0; i < sides.length; i++) {
    if (!mask[i]) continue;
    const stratum = found[division.codes[i]];
    stratum.sides[sides[i]]++;
    stratum.n++;
  }
  return found.filter((stratum) => stratum.n > 0);
}

/** Seconds of RL on so many tasks with so many tokens; null where no rate is known. */
export function rlSeconds(costs: Costs, tasks: number, tokens: number): number | null {
  return costs.rl && costs.rl.seconds_per_task * tasks + costs.rl.seconds_per_token * tokens;
}

export function sftSeconds(costs: Costs, trajectories: number, tokens: number): number | null {
  return costs.sft && costs.sft.seconds_per_task * trajectories + costs.sft.seconds_per_token * tokens;
}

/** What can be said of a cut at once; the audit says more when the slider rests. */
export function oneSided(sides: readonly Total[]): string | null {
  const n = sides.reduce((all, side) => all + side.n, 0);
  for (const [side, name, other] of [
    [sides[0], "SFT", "RL"],
    [sides[2], "RL", "SFT"],
  ] as const) {
    if (n > 0 && side.n === n) return `All ${n} trajectories go to ${name}: ${other} has nothing to train on.`;
    if (n > 0 && side.n >= 0.95 * n)
      return `${side.n} of ${n} trajectories go to ${name}: choose another cut, or the median.`;
  }
  return null;
}
