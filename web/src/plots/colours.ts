import type { Palette } from "../theme";

/** Of SFT, neither and RL, by their codes. */
export const sideColours = (c: Palette): readonly [string, string, string] => [c.sft, c.neither, c.rl];
