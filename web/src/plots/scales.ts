/** A linear map from values to pixels. */
export interface Scale {
  (value: number): number;
  invert(pixel: number): number;
  readonly domain: readonly [number, number];
}

export function linear(domain: readonly [number, number], range: readonly [number, number]): Scale {
  const [d0, d1] = domain;
  const width = d1 - d0 || 1;
  const slope = (range[1] - range[0]) / width;
  const scale = (value: number) => range[0] + (value - d0) * slope;
  return Object.assign(scale, { invert: (pixel: number) => d0 + (pixel - range[0]) / slope, domain });
}

/** Round values that divide a domain into about `count` steps; `whole` numbers where those are asked for. */
export function ticks([low, high]: readonly [number, number], count = 5, whole = false): number[] {
  const width = high - low;
  if (!(width > 0) || !Number.isFinite(width)) return [low];
  const rough = whole ? Math.max(1, width / count) : width / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999)!;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** Decimals that tell ticks of this step apart. */
export function tickText(values: number[]): (value: number) => string {
  const step = values.length > 1 ? Math.abs(values[1] - values[0]) : Math.abs(values[0]) || 1;
  const most = Math.max(...values.map(Math.abs));
  if (most >= 1e5 || (most > 0 && most < 1e-4)) return (value) => (value === 0 ? "0" : compact(value));
  const decimals = Math.max(0, Math.min(8, -Math.floor(Math.log10(step) + 1e-9)));
  return (value) => (Math.abs(value) < step * 1e-9 ? 0 : value).toFixed(decimals).replace("-", "−");
}

function compact(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e3) return `${+(value / 1e3).toPrecision(3)}k`;
  return value.toExponential(1).replace("e", "·10^").replace("+", "");
}

/** A domain with a little air at both ends; where all values are equal, a unit around them. */
export function padded(low: number, high: number, share = 0.03): [number, number] {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  if (low === high) {
    const half = Math.abs(low) * 0.05 || 0.5;
    return [low - half, high + half];
  }
  const pad = (high - low) * share;
  return [low - pad, high + pad];
}
