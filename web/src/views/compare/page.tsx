import { useEffect, useMemo, useState } from "preact/hooks";
import type { Problem } from "../../api";
import { compared, joined } from "../../core/comparison";
import { type Corpus, loadCorpus } from "../../core/corpus";
import { count, number, percent } from "../../core/numbers";
import { link, param, set } from "../../router";
import { problemOf } from "../../source/failed";
import { Head } from "../../ui/head";
import { Loading, Notice, Panel, ProblemNotice, Select } from "../../ui/parts";
import { cutAtShare } from "../corpus/state";
import { entries } from "../folders";
import { metricOfSide } from "./metric";
import { MovedTypes, Movers } from "./movers";
import { Pairwise } from "./scatter";

/** Two probes, or two metrics of one: how far they agree, and who changes sides. */
export function ComparePage() {
  const [a, b] = [useCorpus(param("a")), useCorpus(param("b") ?? param("a"))];
  const corpora = entries.value.filter((entry) => entry.corpus);
  // A corpus is a probe with its routes: it goes by the probe's name, where that is among them.
  const probes = corpora.filter((entry) => entry.kind === "probe");
  const options = [...new Map([...corpora, ...probes].map((entry) => [entry.corpus!, entry.name])).entries()];
  const problem = a.problem ?? b.problem;
  return (
    <main class="page">
      <Head
        title="Compare"
        facts={["two probes, or two metrics: who changes sides"]}
        commands={commandsOf(a.corpus, b.corpus)}
      />
      <Panel label="What is compared" className="pair-choice">
        <Chooser which="a" name="first" corpus={a.corpus} options={options} />
        <button type="button" class="button" title="Exchange both" aria-label="Exchange both" onClick={exchange}>
          ⇄
        </button>
        <Chooser which="b" name="second" corpus={b.corpus} options={options} />
        <label class="field">
          <span>RL share</span>
          <input
            class="number"
            type="number"
            min={1}
            max={99}
            value={param("share") ?? "50"}
            onChange={(event) =>
              set({ share: event.currentTarget.value === "50" ? null : event.currentTarget.value }, true)
            }
          />
          <span>% of both</span>
        </label>
      </Panel>
      {problem && <ProblemNotice problem={problem} />}
      {!param("a") && <p class="fine">Choose two corpora above.</p>}
      {a.corpus && b.corpus ? (
        <Compared first={a.corpus} second={b.corpus} />
      ) : (
        param("a") && !problem && <Loading what="both" />
      )}
    </main>
  );
}

function exchange(): void {
  const [a, b, ma, mb] = [param("a"), param("b"), param("ma"), param("mb")];
  set({ a: b ?? a, b: a, ma: mb ?? ma, mb: ma ?? mb }, true);
}

function useCorpus(id: string | undefined): { corpus: Corpus | null; problem: Problem | null } {
  const [found, setFound] = useState<{ corpus: Corpus | null; problem: Problem | null }>({
    corpus: null,
    problem: null,
  });
  useEffect(() => {
    let current = true;
    if (!id) return;
    loadCorpus(id).then(
      (corpus) => current && setFound({ corpus, problem: null }),
      (error) => current && setFound({ corpus: null, problem: problemOf(error) }),
    );
    return () => {
      current = false;
    };
  }, [id]);
  return found;
}

function Chooser(props: { which: "a" | "b"; name: string; corpus: Corpus | null; options: [string, string][] }) {
  const { which, corpus } = props;
  const metrics = corpus
    ? [...corpus.columns.value.values()].filter((c) => c.kind === "metric" || c.kind === "measure")
    : [];
  return (
    <div class="chooser">
      <Select
        label={props.name}
        value={param(which) ?? param("a") ?? ""}
        options={[...((param(which) ?? param("a")) ? [] : [["", "choose"] as const]), ...props.options]}
        onChange={(value) => set({ [which]: value }, true)}
      />
      {corpus && (
        <Select
          hideLabel
          label={`${props.name} score`}
          value={metricOfSide(which, corpus)}
          options={metrics.map((c) => [c.name, c.label] as const)}
          onChange={(value) => set({ [`m${which}`]: value }, true)}
        />
      )}
    </div>
  );
}

function Compared({ first, second }: { first: Corpus; second: Corpus }) {
  const [ma, mb] = [metricOfSide("a", first), metricOfSide("b", second)];
  const share = Math.min(99, Math.max(1, Number(param("share") ?? 50) || 50)) / 100;
  const pairs = useMemo(() => joined(first, second), [first, second]);
  const [one, two] = [first.numeric(ma), second.numeric(mb)];
  const found = useMemo(() => {
    if (!one || !two) return null;
    const x = Float64Array.from(pairs.a, (row) => one.data[row]);
    const y = Float64Array.from(pairs.b, (row) => two.data[row]);
    return compared(x, y, [
      cutAtShare(Float64Array.from(x).sort(), share),
      cutAtShare(Float64Array.from(y).sort(), share),
    ]);
  }, [pairs, one, two, share]);
  if (pairs.a.length === 0) return <Notice>No trajectory has the same id in both.</Notice>;
  if (!found || !one || !two) return <Loading what="the scores" />;
  const same = first === second;
  const [nameA, nameB] = [
    same ? one.label : `${one.label}, ${first.meta.name}`,
    same ? two.label : `${two.label}, ${second.meta.name}`,
  ];
  const left = first.n + second.n - 2 * pairs.a.length;
  return (
    <>
      <div class="numbers">
        <Figured value={count(pairs.a.length)} name={left ? `in both (${count(left)} in one alone)` : "trajectories"} />
        <Figured value={number(found.spearman, 3)} name="Spearman" />
        <Figured value={percent(found.sameSide)} name="on the same side" />
        <Figured value={number(found.jaccard, 3)} name="Jaccard of RL" />
        <Figured value={count(found.counts[2])} name="SFT → RL" />
        <Figured value={count(found.counts[3])} name="RL → SFT" />
      </div>
      {!same && <Differences first={first} second={second} />}
      <div class="columns">
        <div>
          <Pairwise {...{ first, pairs, found, nameA, nameB }} />
        </div>
        <div>
          <MovedTypes first={first} rows={pairs.a} found={found} />
        </div>
      </div>
      <Movers {...{ first, second, pairs, found, nameA, nameB }} />
    </>
  );
}

function Figured({ value, name }: { value: string; name: string }) {
  return (
    <div>
      <strong>{value}</strong>
      <span>{name}</span>
    </div>
  );
}

/** What the two probes were taken by that is not the same. */
function Differences({ first, second }: { first: Corpus; second: Corpus }) {
  const [a, b] = [first.meta.manifest, second.meta.manifest];
  const names = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter(
    (name) => JSON.stringify(a[name]) !== JSON.stringify(b[name]),
  );
  const text = (value: unknown) => {
    const plain = typeof value === "string" ? value : (JSON.stringify(value) ?? "–");
    return /^[0-9a-f]{64}$/.test(plain) ? plain.slice(0, 12) : plain.length > 70 ? `${plain.slice(0, 69)}…` : plain;
  };
  return (
    <p class="differences">
      {names.length === 0
        ? "Both were probed in the same way."
        : names.map((name) => (
            <span key={name}>
              <b>{name}</b> {text(a[name])} → {text(b[name])}
            </span>
          ))}
    </p>
  );
}

function commandsOf(first: Corpus | null, second: Corpus | null) {
  if (!first || !second) return [];
  const [ma, mb] = [metricOfSide("a", first), metricOfSide("b", second)];
  const load = (corpus: Corpus) => `gp.Probe.load(${JSON.stringify(corpus.meta.path)})`;
  const python =
    first === second
      ? `probe = ${load(first)}\na, b = probe.scores(${JSON.stringify(ma)}), probe.scores(${JSON.stringify(mb)})`
      : `a = ${load(first)}.scores(${JSON.stringify(ma)})\nb = ${load(second)}.scores(${JSON.stringify(mb)})`;
  return [
    { label: "Both scores, in Python", text: `import gradprism as gp\n\n${python}` },
    { label: "The link to this comparison", text: link(["compare"], { a: first.meta.id, b: second.meta.id, ma, mb }) },
  ];
}
