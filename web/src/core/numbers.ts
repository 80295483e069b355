// Numbers as people read them, with their unit on one line; a value that is missing is a dash.

const DASH = "–";
const GROUPS = new Intl.NumberFormat("en-US");

export function count(value: number | null | undefined): string {
  return value === null || value === undefined || Number.isNaN(value) ? DASH : minus(GROUPS.format(Math.round(value)));
}

/** Four significant digits, or as many as given. */
export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return minus(GROUPS.format(value));
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return minus(value.toExponential(Math.max(0, digits - 2)));
  return minus(size >= 10 ** digits ? GROUPS.format(Math.round(value)) : trimmed(value.toPrecision(digits)));
}

export function percent(share: number | null | undefined, decimals = 1): string {
  return share === null || share === undefined || Number.isNaN(share)
    ? DASH
    : `${minus((100 * share).toFixed(decimals))}\u00a0%`;
}

/** Large counts with a letter, for narrow places: 12.3k, 4.56M. */
export function short(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  const size = Math.abs(value);
  for (const [unit, letter] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (size >= unit) return `${minus(trimmed((value / unit).toPrecision(3)))}${letter}`;
  }
  return count(value);
}

/** 48 s, 12.5 min, 3.2 h. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return DASH;
  if (seconds < 0.95) return `${trimmed(seconds.toPrecision(2))}\u00a0s`;
  if (seconds < 90) return `${trimmed(seconds.toPrecision(3))}\u00a0s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)}\u00a0min`;
  const hours = seconds / 3600;
  return hours < 100 ? `${hours.toFixed(1)}\u00a0h` : `${count(hours)}\u00a0h`;
}

export function bytes(value: number): string {
  if (value < 1000) return `${value}\u00a0B`;
  if (value < 1e6) return `${(value / 1e3).toFixed(1)}\u00a0kB`;
  return `${(value / 1e6).toFixed(1)}\u00a0MB`;
}

export function ago(seconds: number): string {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(Date.now() - 1000 * seconds).toISOString().slice(0, 10);
}

const trimmed = (text: string): string =>
  text.includes("e") || !text.includes(".") ? text : text.replace(/\.?0+$/, "");
const minus = (text: string): string => text.replaceAll("-", "−");
