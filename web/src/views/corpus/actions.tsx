import { useState } from "preact/hooks";
import { type Problem, paths, type RouteMeta, type Side } from "../../api";
import { overrideCommand } from "../../core/commands";
import { download, fileName } from "../../core/download";
import { count } from "../../core/numbers";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Line } from "../../ui/command";
import { Menu } from "../../ui/menu";
import { ProblemNotice, Segments } from "../../ui/parts";
import type { CorpusState } from "./state";

/** What can be done with the selected rows, or with all that filters leave. */
export function Actions({ state }: { state: CorpusState }) {
  const selected = state.selected.value;
  const filtered = state.isFiltered.value;
  const rows = selected.size ? [...selected] : filtered ? [...state.shownRows.value] : [];
  if (rows.length === 0) return null;
  const ids = () => rows.map((row) => state.corpus.id(row));
  const idLines = () => `${ids().join("\n")}\n`;
  return (
    <div class="actions" role="toolbar" aria-label="Do with them">
      <span>{selected.size ? `${count(rows.length)} selected` : `all ${count(rows.length)} shown`}</span>
      <Menu label="Tag" align="left" className="button small">
        {(close) => <TagForm state={state} ids={ids} close={close} />}
      </Menu>
      <Menu label="Send to …" align="left" className="button small">
        {(close) => <OverrideForm state={state} rows={rows} close={close} />}
      </Menu>
      <button
        type="button"
        class="button small"
        onClick={() => download(`${fileName(`${state.corpus.meta.name} ids`)}.txt`, idLines())}
      >
        Save ids
      </button>
      {selected.size > 0 ? (
        <button type="button" class="button quiet small" onClick={() => (state.selected.value = new Set())}>
          Clear selection
        </button>
      ) : (
        <button type="button" class="button quiet small" onClick={() => (state.selected.value = new Set(rows))}>
          Select them
        </button>
      )}
    </div>
  );
}

function TagForm({ state, ids, close }: { state: CorpusState; ids: () => string[]; close: () => void }) {
  const [name, setName] = useState("");
  const tags = [...state.tags.all.value];
  const add = (tag: string) => {
    state.tags.add(tag, ids());
    close();
  };
  return (
    <form
      class="small-form"
      onSubmit={(event) => {
        event.preventDefault();
        if (name.trim()) add(name.trim());
      }}
    >
      <label>
        New tag
        <input
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
          placeholder="such as: looks wrong"
          autofocus
        />
      </label>
      <button type="submit" class="button" disabled={!name.trim()}>
        Tag
      </button>
      {tags.map(([tag, tagged]) => (
        <div class="tag-line" key={tag}>
          <button type="button" class="menu-item" onClick={() => add(tag)}>
            {tag} <small>{count(tagged.size)}</small>
          </button>
          <button
            type="button"
            class="button quiet small"
            onClick={() => state.tags.remove(tag, ids())}
            aria-label={`Take ${tag} off`}
          >
            −
          </button>
        </div>
      ))}
      <p class="fine">Tags stay in this browser; filter by them under “+ Filter”.</p>
    </form>
  );
}

const SIDE_OPTIONS = [
  ["sft", "SFT"],
  ["none", "neither"],
  ["rl", "RL"],
  ["both", "both"],
  ["undo", "as cut"],
] as const;

const MOST_IDS = 50; // in the line for Python

function OverrideForm({ state, rows, close }: { state: CorpusState; rows: number[]; close: () => void }) {
  const [side, setSide] = useState("rl");
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const route = state.route.value;
  if (!source.live) return <Why>An exported page changes nothing: open the folder with `gradprism studio`.</Why>;
  if (!route) {
    return (
      <Why>
        {state.corpus.routes.value.length
          ? "Choose a route under “cut by”: an override is kept in its routes.parquet."
          : "There is no route folder of this probe here: make one with the line under “Copy command”, beside the probe."}
      </Why>
    );
  }
  const ids = rows.slice(0, MOST_IDS).map((row) => state.corpus.id(row));
  if (route.read_only) return <ProblemNotice problem={route.read_only} />;
  const send = async () => {
    setBusy(true);
    setProblem(null);
    try {
      const body = {
        rows,
        side: side === "undo" ? null : (side as Side),
        reason: side === "undo" ? "" : reason.trim(),
        version: route.version,
      };
      const changed = await source.post<RouteMeta>(paths.override(state.corpus.meta.id, route.id), body);
      state.corpus.routes.value = state.corpus.routes.value.map((other) => (other.id === changed.id ? changed : other));
      state.selected.value = new Set();
      close();
    } catch (error) {
      setProblem(problemOf(error));
    } finally {
      setBusy(false);
    }
  };
  return (
    <form
      class="small-form"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <p>
        {count(rows.length)} of route <strong>{route.name}</strong>, whatever the cut:
      </p>
      <Segments label="Side" value={side} options={SIDE_OPTIONS} onChange={setSide} />
      {side !== "undo" && (
        <label>
          Reason
          <input
            value={reason}
            onInput={(event) => setReason(event.currentTarget.value)}
            required
            placeholder="kept in routes.parquet"
            autofocus
          />
        </label>
      )}
      <button type="submit" class="button" disabled={busy || (side !== "undo" && !reason.trim())}>
        {busy ? "Writing …" : side === "undo" ? "Take overrides back" : "Override"}
      </button>
      {problem && <ProblemNotice problem={problem} />}
      {rows.length <= MOST_IDS && (
        <Line {...overrideCommand(state.corpus.meta.path, route.path, ids, side === "undo" ? null : side, reason)} />
      )}
    </form>
  );
}

function Why({ children }: { children: preact.ComponentChildren }) {
  return <p class="small-form">{children}</p>;
}
