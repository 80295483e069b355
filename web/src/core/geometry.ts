/** Whether a point is inside a polygon `[x0, y0, x1, y1, …]`, by the number of edges to its right. */
export function inside(polygon: ArrayLike<number>, x: number, y: number): boolean {
  let result = false;
  for (let i = 0, j = polygon.length - 2; i < polygon.length; j = i, i += 2) {
    const [xi, yi, xj, yj] = [polygon[i], polygon[i + 1], polygon[j], polygon[j + 1]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) result = !result;
  }
  return result;
}

/** The polygon with fewer corners: those nearer than `distance` to the last kept one are left out, so that it fits into a link. */
export function thinned(polygon: readonly number[], distance: number): number[] {
  const kept: number[] = [];
  for (let i = 0; i < polygon.length; i += 2) {
    const [x, y] = [polygon[i], polygon[i + 1]];
    const n = kept.length;
    if (n === 0 || Math.hypot(x - kept[n - 2], y - kept[n - 1]) >= distance) kept.push(x, y);
  }
  return kept;
}
