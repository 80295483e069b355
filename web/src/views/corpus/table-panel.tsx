import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Problem, paths } from "../../api";
import { SIDES } from "../../core/cut";
import { csv, download, fileName } from "../../core/download";
import { describe, type Filter } from "../../core/filters";
import { count, number } from "../../core/numbers";
import { param, set } from "../../router";
import { categoryAt, decodeColumns, isText, type NumericColumn } from "../../source/columns";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Grid, type GridColumn } from "../../ui/grid";
import { Menu } from "../../ui/menu";
import { Panel, ProblemNotice, SideMark } from "../../ui/parts";
import { Actions } from "./actions";
import { openTrajectory } from "./open";
import type { CorpusState } from "./state";

/** All trajectories: search, filters as chips, sorting; a selection can be tagged, or sent to a side with a reason. */
export function TablePanel({ state }: { state: CorpusState }) {
  const rows = state.rows.value;
  const { n } = state.corpus;
  const columns = useColumns(state);
  const sort = state.sort.value;
  return (
    <Panel
      label="Trajectories"
      className="table"
      title={
        <>
          Trajectories{" "}
          <span class="count" aria-live="polite">
            {state.isFiltered.value ? `${count(rows.length)} of ${count(n)}` : count(n)}
          </span>
        </>
      }
      tools={
        <>
          <ColumnMenu state={state} />
          <button
            type="button"
            class="button quiet small"
            title="Save the shown rows as CSV"
            onClick={() => save(state, columns)}
          >
            ⤓
          </button>
        </>
      }
    >
      <FilterBar state={state} />
      <Actions state={state} />
      <Grid
        label="Trajectories"
        rows={rows}
        columns={columns}
        sort={sort}
        onSort={(name) => set({ sort: sort.name === name && sort.down ? name : `-${name}` }, true)}
        onOpen={(row) => openTrajectory(state, row)}
        selected={state.selected.value}
        onSelect={(selected) => {
          state.selected.value = selected;
        }}
        maxHeight="max(360px, min(70vh, 900px))"
        empty="No trajectory passes these filters."
      />
      <p class="fine keys">
        <kbd>↑</kbd> <kbd>↓</kbd> move · <kbd>Enter</kbd> opens · <kbd>Space</kbd> selects, with <kbd>Shift</kbd> to
        there · <kbd>/</kbd> searches
      </p>
    </Panel>
  );
}

function FilterBar({ state }: { state: CorpusState }) {
  const [text, setText] = useState(param("q") ?? "");
  const [searching, setSearching] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const input = useRef<HTMLInputElement>(null);
  const filters = state.filters.value;
  const full = param("text");
  const { id, version } = state.corpus.meta;
  useEffect(() => setText(param("q") ?? ""), [param("q")]);
  useEffect(() => {
    const focus = (event: KeyboardEvent) => {
      const target = event.target as Element;
      if (event.key !== "/" || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      event.preventDefault();
      input.current?.focus();
    };
    document.addEventListener("keydown", focus);
    return () => document.removeEventListener("keydown", focus);
  }, []);
  useEffect(() => {
    if (!full) {
      state.found.value = null;
      return;
    }
    let current = true;
    setSearching(true);
    setProblem(null);
    source
      .bytes(paths.search(id, full, version))
      .then((bytes) => {
        const rows = (decodeColumns(bytes).columns[0] as NumericColumn).data as Uint32Array;
        if (current) state.found.value = { q: full, rows };
      })
      .catch((error) => current && setProblem(problemOf(error)))
      .finally(() => setSearching(false));
    return () => {
      current = false;
    };
  }, [full, id, version]);
  const all = () => {
    if (text.trim()) set({ text: text.trim(), q: null }, true);
  };
  return (
    <div class="filter-bar">
      <form
        role="search"
        onSubmit={(event) => {
          event.preventDefault();
          all();
        }}
      >
        <input
          ref={input}
          type="search"
          placeholder="Search ids and first lines; Enter searches all texts"
          aria-label="Search"
          value={text}
          onInput={(event) => {
            setText(event.currentTarget.value);
            set({ q: event.currentTarget.value || null });
          }}
        />
      </form>
      <ul class="chips" aria-label="Filters">
        {full && (
          <Chip
            text={searching ? `searching “${full}” …` : `text has “${full}”`}
            onRemove={() => set({ text: null }, true)}
          />
        )}
        {filters.map((filter, i) => (
          <Chip
            key={describe(filter, (name) => name)}
            text={describe(filter, (name) => state.label(name))}
            onRemove={() => state.setFilters(filters.filter((_, j) => j !== i))}
          />
        ))}
        {(filters.length > 1 || (filters.length > 0 && full)) && (
          <li>
            <button
              type="button"
              class="button quiet small"
              onClick={() => set({ f: null, text: null, q: null }, true)}
            >
              Clear all
            </button>
          </li>
        )}
      </ul>
      <AddFilter state={state} />
      {problem && <ProblemNotice problem={problem} />}
    </div>
  );
}

function Chip({ text, onRemove }: { text: string; onRemove: () => void }) {
  return (
    <li class="chip">
      <span>{text}</span>
      <button type="button" aria-label={`Remove the filter “${text}”`} onClick={onRemove}>
        ×
      </button>
    </li>
  );
}

function AddFilter({ state }: { state: CorpusState }) {
  const numbers = state.numbers.value;
  const categories = state.categories.value;
  const [name, setName] = useState("side");
  const column = state.numeric(name);
  const tags = [...state.tags.all.value.keys()];
  const values = name === "tag" ? tags : (column?.values ?? []);
  const numeric = name !== "tag" && column?.kind !== "category";
  const add = (filter: Filter, close: () => void) => {
    const others = state.filters.value.filter((other) => other.kind === "lasso" || other.column !== name);
    state.setFilters([...others, filter]);
    close();
  };
  return (
    <Menu label="+ Filter" title="Add a filter" className="button small">
      {(close) => (
        <form
          class="add-filter"
          onSubmit={(event) => {
            event.preventDefault();
            const form = new FormData(event.currentTarget as HTMLFormElement);
            if (!numeric) add({ kind: "in", column: name, values: form.getAll("value").map(String) }, close);
            else {
              const end = (key: string, none: number) => (form.get(key) === "" ? none : Number(form.get(key)));
              add(
                {
                  kind: "range",
                  column: name,
                  low: end("low", Number.NEGATIVE_INFINITY),
                  high: end("high", Number.POSITIVE_INFINITY),
                },
                close,
              );
            }
          }}
        >
          <label class="field">
            <span>where</span>
            <select value={name} onChange={(event) => setName(event.currentTarget.value)}>
              <option value="side">side</option>
              {tags.length > 0 && <option value="tag">tag</option>}
              {categories.map((each) => (
                <option key={each.name} value={each.name}>
                  {each.label}
                </option>
              ))}
              {numbers.map((each) => (
                <option key={each.name} value={each.name}>
                  {each.label}
                </option>
              ))}
            </select>
          </label>
          {numeric ? (
            <div class="field">
              <span>from</span>
              <input class="number wide" name="low" type="number" step="any" aria-label="from" />
              <span>to</span>
              <input class="number wide" name="high" type="number" step="any" aria-label="to" />
            </div>
          ) : (
            <select name="value" multiple size={Math.min(8, Math.max(2, values.length))} aria-label="values" required>
              {values.map((value) => (
                <option key={value} value={value}>
                  {value}
                </option>
              ))}
            </select>
          )}
          <button type="submit" class="button">
            Filter
          </button>
        </form>
      )}
    </Menu>
  );
}

const ALWAYS = ["side", "id"];
const USUAL = ["task_type", "n_response_tokens", "n_turns", "loss", "preview"];

function chosenNames(state: CorpusState): string[] {
  const wanted = param("cols")?.split(",") ?? [
    ...ALWAYS,
    state.metric.value,
    ...state.corpus.meta.metrics.slice(0, 3),
    ...USUAL,
  ];
  return [...new Set(wanted)].filter((name) => state.column(name));
}

function useColumns(state: CorpusState): GridColumn[] {
  const names = chosenNames(state);
  const sides = state.sides.value;
  const overrides = state.overrides.value;
  const complete = state.corpus.columns.value;
  return useMemo(
    () =>
      names.map((name): GridColumn => {
        const column = state.column(name)!;
        const base = { key: name, label: column.label, title: column.help };
        if (name === "side") {
          const render = (row: number) => (
            <>
              <SideMark side={SIDES[sides[row]]} />
              {overrides.has(row) && (
                <span class="override" title="overridden by hand">
                  ✎
                </span>
              )}
            </>
          );
          return { ...base, width: "76px", render };
        }
        if (name === "id")
          return {
            ...base,
            width: "minmax(160px, 2.2fr)",
            render: (row) => (
              <span class="mono" title={state.corpus.id(row)}>
                {state.corpus.shortId(row)}
              </span>
            ),
          };
        if (isText(column))
          return {
            ...base,
            width: "minmax(160px, 2.5fr)",
            sortable: name !== "preview",
            render: (row) => column.at(row),
          };
        if (column.kind === "category")
          return { ...base, width: "minmax(90px, 1fr)", render: (row) => categoryAt(column, row) ?? "–" };
        return {
          ...base,
          width: `${Math.max(84, 7 * column.label.length + 26)}px`,
          numeric: true,
          render: (row) => number(column.data[row]),
        };
      }),
    [names.join(), sides, overrides, complete],
  );
}

function ColumnMenu({ state }: { state: CorpusState }) {
  const chosen = chosenNames(state);
  const all = [
    ...new Set([...ALWAYS, ...state.corpus.columns.value.keys(), ...state.routeColumns.value.keys()]),
  ].filter((name) => name !== "cut");
  const toggle = (name: string) => {
    const next = chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name];
    set({ cols: next.join(",") }, true);
  };
  return (
    <Menu label="Columns" className="button small" title="Choose columns">
      <div class="column-menu">
        {all.map((name) => (
          <label key={name}>
            <input type="checkbox" checked={chosen.includes(name)} onChange={() => toggle(name)} /> {state.label(name)}
          </label>
        ))}
      </div>
    </Menu>
  );
}

function save(state: CorpusState, columns: readonly GridColumn[]): void {
  const value = (name: string, row: number): string | number | null => {
    const column = state.column(name)!;
    if (isText(column)) return column.at(row);
    return column.kind === "category" ? categoryAt(column, row) : column.data[row];
  };
  const names = columns.map((column) => column.key);
  const lines = Array.from(state.rows.value, (row) => names.map((name) => value(name, row)));
  download(`${fileName(`${state.corpus.meta.name} trajectories`)}.csv`, csv([names, ...lines]), "text/csv");
}
