// Where scores are cut, and the side of each range between: usually one threshold, below SFT and above RL.
import type { RouteMeta } from "../api";

/** Codes of the sides, in this order everywhere. */
export const SIDES = ["sft", "none", "rl", "both"] as const;
export const SIDE_NAMES = ["SFT", "neither", "RL", "both"] as const;

/** `at` ascending; `sides` has a code more than there are cuts, lowest range first. A score belongs above a cut where it is greater. */
export interface Cut {
  at: readonly number[];
  sides: readonly number[];
}

const USUAL: readonly (readonly number[])[] = [[], [0, 2], [0, 1, 2]];

export const usualSides = (cuts: number): readonly number[] => USUAL[cuts] ?? [0, ...Array(cuts - 1).fill(1), 2];

/** Where weights take the place of sides: nothing is cut, all goes to both. */
export const UNCUT: Cut = { at: [], sides: [3] };

export function cutOf(route: RouteMeta): Cut {
  return { at: route.cuts, sides: route.sides.map((side) => SIDES.indexOf(side)) };
}

/** Of an address: `0.32,0.4` and `sft,none,rl`; null where it says nothing, or nonsense. */
export function parseCut(at: string | undefined, sides: string | undefined): Cut | null {
  if (!at) return null;
  const numbers = at.split(",").map(Number);
  if (!numbers.every(Number.isFinite)) return null;
  const codes = sides?.split(",").map((side) => SIDES.indexOf(side as "sft"));
  const known = codes?.length === numbers.length + 1 && codes.every((code) => code >= 0);
  return { at: numbers.sort((a, b) => a - b), sides: known ? codes : usualSides(numbers.length) };
}

export function cutParams({ at, sides }: Cut): { cut: string; sides: string | null } {
  const usual = String(sides) === String(usualSides(at.length));
  return { cut: at.join(","), sides: usual ? null : sides.map((code) => SIDES[code]).join(",") };
}

/** With one cut elsewhere; the others make way. */
export function moved({ at, sides }: Cut, which: number, value: number): Cut {
  return {
    at: at.map((cut, i) => (i === which ? value : i < which ? Math.min(cut, value) : Math.max(cut, value))),
    sides,
  };
}

export const sameCut = (a: Cut, b: Cut): boolean =>
  String(a.at) === String(b.at) && String(a.sides) === String(b.sides);

/** `0.356` or `0.32 and 0.4`. */
export const cutText = (cut: Cut, number: (value: number) => string): string =>
  cut.at.map((value) => number(value)).join(" and ");
