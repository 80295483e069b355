import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Problem } from "../../api";
import { routeCommands } from "../../core/commands";
import { type Corpus, forgetCorpus, loadCorpus } from "../../core/corpus";
import { sameCut } from "../../core/cut";
import { count, short } from "../../core/numbers";
import { link, param, params } from "../../router";
import { problemOf } from "../../source/failed";
import { Head } from "../../ui/head";
import { Loading, Notice, ProblemNotice } from "../../ui/parts";
import { corpusEntry, entries } from "../folders";
import { ScatterPanel } from "./scatter-panel";
import { SplitPanel } from "./split-panel";
import { CorpusState } from "./state";
import { StrataPanel } from "./strata-panel";
import { TablePanel } from "./table-panel";

const states = new Map<Corpus, CorpusState>();

function stateOf(corpus: Corpus): CorpusState {
  let state = states.get(corpus);
  if (!state) {
    state = new CorpusState(corpus);
    states.set(corpus, state);
  }
  return state;
}

/** Gives its children a corpus, once its first columns are there; a notice where it changed on disk. */
export function WithCorpus({ id, children }: { id: string; children: (state: CorpusState) => ComponentChildren }) {
  const [corpus, setCorpus] = useState<Corpus | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [round, setRound] = useState(0);
  useEffect(() => {
    let current = true;
    setProblem(null);
    loadCorpus(id).then(
      (loaded) => current && setCorpus(loaded),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [id, round]);
  const again = () => {
    forgetCorpus(id);
    setCorpus(null);
    setRound(round + 1);
  };
  if (problem) {
    return (
      <main class="page">
        <ProblemNotice problem={problem} />
        <button type="button" class="button" onClick={again}>
          Try again
        </button>
      </main>
    );
  }
  if (!corpus || corpus.meta.id !== id) return <Loading what="the corpus" />;
  return (
    <>
      <Changed corpus={corpus} again={again} />
      {corpus.problem.value && <ProblemNotice problem={corpus.problem.value} />}
      {children(stateOf(corpus))}
    </>
  );
}

function Changed({ corpus, again }: { corpus: Corpus; again: () => void }) {
  const entry = corpusEntry(corpus.meta.id);
  if (!entry || entry.version === corpus.meta.version) return null;
  return (
    <Notice kind={entry.problem ? "bad" : "warning"}>
      {entry.problem ? `${entry.problem.message}; ${entry.problem.hint} ` : "This folder has changed on disk. "}
      <button type="button" class="button small" onClick={again}>
        Load again
      </button>
    </Notice>
  );
}

export function CorpusPage({ id }: { id: string }) {
  return <WithCorpus id={id}>{(state) => <CorpusView state={state} />}</WithCorpus>;
}

function CorpusView({ state }: { state: CorpusState }) {
  const { meta } = state.corpus;
  const cut = state.cut.value;
  const column = state.metric.value;
  const route = state.route.value;
  const [weights, order, shares] = [state.weights.value, state.order.value, state.shares.value];
  const moved = !sameCut(cut, state.given.value);
  const commands = useMemo(
    () => routeCommands(meta, column, { cut: moved ? cut : null, shares, weights, order }, route),
    [meta, column, cut, moved, shares, weights, order, route],
  );
  const others = entries.value.filter((entry) => entry.corpus && entry.corpus !== meta.id);
  return (
    <main class="page">
      <Head
        title={meta.name}
        facts={[
          `${count(meta.n)} trajectories`,
          `${short(meta.n_tokens)} tokens, ${short(meta.n_response_tokens)} of responses`,
          meta.units.length ? `${meta.units.length} matrices` : "no norms",
          ...manifestFacts(meta.manifest),
        ]}
        commands={commands}
      >
        <a
          class="button"
          href={link(["compare"], { a: meta.id, b: others[0]?.corpus ?? meta.id, ma: state.metric.value })}
        >
          Compare
        </a>
      </Head>
      {meta.warnings.map((line) => (
        <Notice key={line}>{line}</Notice>
      ))}
      {state.route.value?.warnings.map((line) => (
        <Notice key={line}>{line}</Notice>
      ))}
      <div class="columns even">
        <div>
          <SplitPanel state={state} />
          <StrataPanel state={state} />
        </div>
        <div>
          <ScatterPanel state={state} />
        </div>
      </div>
      <TablePanel state={state} key={param("route") ?? ""} />
    </main>
  );
}

function manifestFacts(manifest: Record<string, unknown>): string[] {
  const { model, dtype, context_length } = manifest;
  return [
    typeof model === "string" && model ? `of ${model.split("/").at(-1)}` : "",
    typeof dtype === "string" ? dtype.replace("torch.", "") : "",
    typeof context_length === "number" ? `context ${count(context_length)}` : "",
  ].filter(Boolean);
}

export const corpusLink = (id: string): string => link(["corpus", id], params.value);
