// Statistics on typed arrays, as gradprism's Python computes them.

export type Numbers = Float64Array | Float32Array;

/**
 * Positions in ascending order of value; NaN last. Ties keep their order. Values are sorted natively and looked up, which takes a tenth of
 * sorting positions by a function.
 */
export function order(values: ArrayLike<number>): Uint32Array {
  const ascending = Float64Array.from(values).sort();
  let known = ascending.length;
  while (known > 0 && Number.isNaN(ascending[known - 1])) known--;
  const used = new Uint32Array(known);
  const result = new Uint32Array(values.length);
  let end = known;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (Number.isNaN(value)) {
      result[end++] = i;
      continue;
    }
    let [low, high] = [0, known];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ascending[middle] < value) low = middle + 1;
      else high = middle;
    }
    result[low + used[low]++] = i;
  }
  return result;
}

/** Average ranks from 1; NaN where the value is. */
export function ranks(values: ArrayLike<number>, sorted = order(values)): Float64Array {
  const result = new Float64Array(values.length).fill(Number.NaN);
  for (let start = 0; start < sorted.length; ) {
    const value = values[sorted[start]];
    if (Number.isNaN(value)) break;
    let end = start + 1;
    while (end < sorted.length && values[sorted[end]] === value) end++;
    for (let i = start; i < end; i++) result[sorted[i]] = (start + end + 1) / 2;
    start = end;
  }
  return result;
}

/** Pearson's correlation over the positions where both are numbers; null where either does not vary. */
export function correlation(x: ArrayLike<number>, y: ArrayLike<number>): number | null {
  let [n, sx, sy] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    if (Number.isNaN(x[i]) || Number.isNaN(y[i])) continue;
    n++;
    sx += x[i];
    sy += y[i];
  }
  const [mx, my] = [sx / n, sy / n];
  let [xx, yy, xy] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    if (Number.isNaN(x[i]) || Number.isNaN(y[i])) continue;
    xx += (x[i] - mx) ** 2;
    yy += (y[i] - my) ** 2;
    xy += (x[i] - mx) * (y[i] - my);
  }
  return xx > 0 && yy > 0 ? Math.max(-1, Math.min(1, xy / Math.sqrt(xx * yy))) : null;
}

/** The value of which `share` lie above, as `gradprism route` chooses it: linear between neighbours; ascending values without NaN. */
export function quantile(ascending: ArrayLike<number>, share: number): number {
  const at = Math.max(0, Math.min(1, share)) * (ascending.length - 1);
  const below = Math.floor(at);
  const above = Math.min(below + 1, ascending.length - 1);
  return ascending[below] + (at - below) * (ascending[above] - ascending[below]);
}

/** Number of ascending values that are at most `value`. */
export function countUpTo(ascending: ArrayLike<number>, value: number): number {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function extent(values: ArrayLike<number>): [number, number] {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Wilson's 95 % interval of a proportion. */
export function wilson(successes: number, n: number): [number, number] {
  if (n === 0) return [0, 1];
  const z = 1.959963984540054;
  const p = successes / n;
  const centre = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [successes === 0 ? 0 : centre - half, successes === n ? 1 : centre + half];
}
