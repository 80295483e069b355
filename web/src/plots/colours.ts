import type { Palette } from "../theme";

/** Of SFT, neither, RL and both, by their codes. */
export const sideColours = (c: Palette): readonly [string, string, string, string] => [
  c.sft,
  c.neither,
  c.rl,
  c.accent,
];
