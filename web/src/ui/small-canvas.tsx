import { useLayoutEffect, useRef } from "preact/hooks";

/** A small picture beside a number: `draw` is called again where one of `causes` has changed, at the screen's own resolution. */
export function SmallCanvas(props: {
  width: number;
  height: number;
  draw: (context: CanvasRenderingContext2D) => void;
  causes: readonly unknown[];
}) {
  const { width, height, draw, causes } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const ratio = window.devicePixelRatio || 1;
    const node = canvas.current!;
    [node.width, node.height] = [width * ratio, height * ratio];
    const context = node.getContext("2d")!;
    context.scale(ratio, ratio);
    draw(context);
  }, causes);
  return (
    <canvas ref={canvas} class="spark" style={{ width: `${width}px`, height: `${height}px` }} aria-hidden="true" />
  );
}

/** Bars from the lower edge, at most `highest` pixels high and at least one where there is any; `colour` is asked before each. */
export function bars(
  context: CanvasRenderingContext2D,
  counts: Uint32Array,
  size: { width: number; height: number; highest: number },
  colour: (place: number) => string,
) {
  const most = Math.max(1, ...counts);
  const width = size.width / counts.length;
  counts.forEach((n, i) => {
    context.fillStyle = colour((i + 0.5) / counts.length);
    const height = n === 0 ? 0 : Math.max(1, (n / most) * size.highest);
    context.fillRect(i * width, size.height - height, width - 0.5, height);
  });
}
