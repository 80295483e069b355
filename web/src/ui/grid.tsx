import type { ComponentChildren } from "preact";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";

export interface GridColumn {
  key: string;
  label: string;
  title?: string;
  width: string; // of CSS grid-template-columns
  numeric?: boolean;
  sortable?: boolean;
  render: (row: number) => ComponentChildren;
}

interface Props {
  label: string;
  rows: ArrayLike<number>;
  columns: readonly GridColumn[];
  sort?: { name: string; down: boolean };
  onSort?: (name: string) => void;
  onOpen?: (row: number) => void;
  selected?: ReadonlySet<number>;
  onSelect?: (rows: ReadonlySet<number>) => void;
  rowHeight?: number;
  /** Below which it is scrolled sideways. */
  minWidth?: string;
  /** It is as high as its rows, and no higher than this. */
  maxHeight: string;
  empty: ComponentChildren;
}

const SPARE = 8; // rows drawn beyond the visible ones

/** A table that draws only the rows in sight. Arrows move, Enter opens, Space selects. */
export function Grid(props: Props) {
  const { rows, columns, rowHeight = 26 } = props;
  const scroller = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [seen, setSeen] = useState(400);
  const [active, setActive] = useState(0);
  const anchor = useRef<number | null>(null);
  const name = useId();
  const count = rows.length;
  const at = Math.min(active, Math.max(0, count - 1));

  useLayoutEffect(() => {
    const node = scroller.current!;
    const observer = new ResizeObserver(() => setSeen(node.clientHeight));
    observer.observe(node);
    return () => observer.disconnect();
  }, []);
  // Another order or filter begins at the top.
  useEffect(() => {
    setActive(0);
    anchor.current = null;
    if (scroller.current) scroller.current.scrollTop = 0;
  }, [rows]);

  const first = Math.max(0, Math.floor(top / rowHeight) - SPARE);
  const last = Math.min(count, Math.ceil((top + seen) / rowHeight) + SPARE);

  const moveTo = (index: number) => {
    const next = Math.max(0, Math.min(count - 1, index));
    setActive(next);
    const node = scroller.current!;
    const head = node.querySelector<HTMLElement>(".grid-head")?.offsetHeight ?? 0;
    if (next * rowHeight < node.scrollTop) node.scrollTop = next * rowHeight;
    else if ((next + 1) * rowHeight + head > node.scrollTop + node.clientHeight)
      node.scrollTop = (next + 1) * rowHeight + head - node.clientHeight;
  };
  const select = (index: number, range: boolean) => {
    if (!props.onSelect) return;
    const next = new Set(props.selected);
    const row = rows[index];
    if (range && anchor.current !== null) {
      const [from, to] = [Math.min(anchor.current, index), Math.max(anchor.current, index)];
      for (let i = from; i <= to; i++) next.add(rows[i]);
    } else if (next.has(row)) next.delete(row);
    else next.add(row);
    anchor.current = index;
    props.onSelect(next);
  };
  const onKey = (event: KeyboardEvent) => {
    if ((event.target as Element).tagName === "BUTTON" || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(seen / rowHeight) - 2);
    const moves: Record<string, number> = {
      ...{ ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1 },
      ...{ PageDown: at + page, PageUp: at - page, Home: 0, End: count - 1 },
    };
    if (event.key in moves) moveTo(moves[event.key]);
    else if (event.key === "Enter" && count) props.onOpen?.(rows[at]);
    else if (event.key === " " && count) select(at, event.shiftKey);
    else if (event.key === "Escape" && props.selected?.size) props.onSelect?.(new Set());
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const template = `${props.onSelect ? "28px " : ""}${columns.map((column) => column.width).join(" ")}`;
  const shift = props.onSelect ? 1 : 0;
  const visible: ComponentChildren[] = [];
  for (let index = first; index < last; index++) {
    const row = rows[index];
    const chosen = props.selected?.has(row) ?? false;
    visible.push(
      <div
        key={row}
        id={`${name}-${index}`}
        role="row"
        aria-rowindex={index + 2}
        aria-selected={props.onSelect ? chosen : undefined}
        class={`grid-row ${index === at ? "active" : ""} ${chosen ? "chosen" : ""}`}
        style={{ top: `${index * rowHeight}px`, height: `${rowHeight}px`, gridTemplateColumns: template }}
        onClick={(event) => {
          setActive(index);
          if (event.shiftKey) select(index, true);
          else if (!(event.target as Element).closest(".grid-check")) props.onOpen?.(row);
        }}
      >
        {props.onSelect && (
          <div
            role="gridcell"
            class="grid-check"
            onClick={(event) => {
              event.stopPropagation();
              setActive(index);
              select(index, event.shiftKey);
            }}
          >
            <i class={chosen ? "check on" : "check"} />
          </div>
        )}
        {columns.map((column) => (
          <div key={column.key} role="gridcell" class={column.numeric ? "n" : ""}>
            {column.render(row)}
          </div>
        ))}
      </div>,
    );
  }
  return (
    <div
      ref={scroller}
      class="grid"
      role="grid"
      aria-label={props.label}
      aria-rowcount={count + 1}
      aria-colcount={columns.length + shift}
      aria-multiselectable={props.onSelect ? true : undefined}
      aria-activedescendant={count ? `${name}-${at}` : undefined}
      tabIndex={0}
      style={{ maxHeight: props.maxHeight, "--grid-width": props.minWidth ?? "44rem" }}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}
      onKeyDown={onKey}
    >
      <div class="grid-head" role="row" aria-rowindex={1} style={{ gridTemplateColumns: template }}>
        {props.onSelect && <div role="columnheader" aria-label="selected" />}
        {columns.map((column) => {
          const sorted = props.sort?.name === column.key;
          return (
            <div
              key={column.key}
              role="columnheader"
              class={column.numeric ? "n" : ""}
              title={column.title}
              aria-sort={sorted ? (props.sort!.down ? "descending" : "ascending") : undefined}
            >
              {column.sortable === false || !props.onSort ? (
                column.label
              ) : (
                <button
                  type="button"
                  aria-label={column.label ? undefined : column.title}
                  onClick={() => props.onSort!(column.key)}
                >
                  {column.label}
                  <span aria-hidden="true">{sorted ? (props.sort!.down ? " ↓" : " ↑") : ""}</span>
                </button>
              )}
            </div>
          );
        })}
      </div>
      <div class="grid-body" style={{ height: `${count * rowHeight}px` }}>
        {visible}
      </div>
      {count === 0 && <div class="grid-empty">{props.empty}</div>}
    </div>
  );
}
