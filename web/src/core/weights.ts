// Weights in place of sides, as `gradprism route --weights` makes them: how much SFT takes of each trajectory, and how much RL.
import type { RouteMeta } from "../api";
import type { NumberArray } from "../source/columns";
import { ranks } from "./statistics";

export type Form = "linear" | "logistic";

/** `temperature` is that of logistic weights; a small one is nearly the median's split. */
export interface Weights {
  form: Form;
  temperature: number | null;
}

const TEMPERATURE = 0.1;

/** Of an address: `linear` or `logistic`, and a number; null where it says neither. */
export function parseWeights(form: string | undefined, temperature: string | undefined): Weights | null {
  if (form === "linear") return { form, temperature: null };
  if (form !== "logistic") return null;
  const value = Number(temperature);
  return { form, temperature: value > 0 && Number.isFinite(value) ? value : TEMPERATURE };
}

export const weightsOf = (route: RouteMeta): Weights | null =>
  route.weights && { form: route.weights, temperature: route.temperature };

/** RL's weight of each score by its rank as a fraction of all, 0 to 1; SFT's is one less that. NaN where there is no score. */
export function rlWeights(score: NumberArray, { temperature }: Weights): Float64Array {
  const rank = ranks(score);
  const n = rank.reduce((known, value) => known + Number(!Number.isNaN(value)), 0);
  return rank.map((value) => {
    const fraction = (value - 0.5) / n;
    return temperature === null ? fraction : (1 + Math.tanh((fraction - 0.5) / (2 * temperature))) / 2;
  });
}

/** Both sides, or where one weight is 0 the other; what has no score goes to neither, overrides where they say. */
export function sidesByWeights(rl: Float64Array, overrides: ReadonlyMap<number, number>): Uint8Array {
  const sides = Uint8Array.from(rl, (weight) => (Number.isNaN(weight) ? 1 : weight === 0 ? 0 : weight === 1 ? 2 : 3));
  for (const [row, side] of overrides) sides[row] = side;
  return sides;
}

export const weightsText = ({ form, temperature }: Weights): string =>
  `${form} weights${temperature === null ? "" : ` of temperature ${temperature}`}`;
