import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Problem } from "../../api";
import { type Comparison, compared, joined, MOVES, movedBy } from "../../core/comparison";
import { type Corpus, loadCorpus } from "../../core/corpus";
import { csv, download } from "../../core/download";
import { count, number, percent } from "../../core/numbers";
import { extent } from "../../core/statistics";
import { type Draw, Figure } from "../../plots/figure";
import { padded } from "../../plots/scales";
import { drawScatter, positions, type ScatterData, scatterScales } from "../../plots/scatter";
import { go, link, param, set } from "../../router";
import { problemOf } from "../../source/failed";
import { type Palette, palette } from "../../theme";
import { Grid, type GridColumn } from "../../ui/grid";
import { Head } from "../../ui/head";
import { Loading, Notice, Panel, ProblemNotice, Segments, Select } from "../../ui/parts";
import { cutAtShare } from "../corpus/state";
import { entries } from "../folders";

const moveColours = (c: Palette): string[] => [c.sft, c.rl, c.low, c.high];

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

const metricOfSide = (which: "a" | "b", corpus: Corpus): string => {
  const wanted = param(`m${which}`) ?? (which === "b" ? param("ma") : undefined);
  return wanted && corpus.numeric(wanted) ? wanted : corpus.meta.metrics[0];
};

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

const HEIGHT = 420;

function Pairwise(props: {
  first: Corpus;
  pairs: { a: Uint32Array };
  found: Comparison;
  nameA: string;
  nameB: string;
}) {
  const { first, pairs, found, nameA, nameB } = props;
  const c = palette.value;
  const scale = param("scale") === "values" ? "values" : "ranks";
  const only = param("move");
  const [hover, setHover] = useState<number | null>(null);
  const width = useRef(0);
  const onSize = useCallback((w: number) => {
    width.current = w;
  }, []);
  const data = useMemo<ScatterData>(() => {
    const ranked = scale === "ranks";
    const [x, y] = ranked ? [found.xRanks, found.yRanks] : [found.x, found.y];
    const all = Uint32Array.from({ length: x.length }, (_, i) => i);
    const upTo = (values: Float64Array, cut: number) =>
      values.reduce((n, value) => n + (value <= cut ? 1 : 0), 0) + 0.5;
    return {
      ...{ x, y, group: found.moves, colours: moveColours(c) },
      rows: only ? all.filter((i) => String(found.moves[i]) === only) : all,
      xLabel: ranked ? `rank by ${nameA}` : nameA,
      yLabel: ranked ? `rank by ${nameB}` : nameB,
      xDomain: padded(...extent(x)),
      yDomain: padded(...extent(y)),
      xCuts: [ranked ? upTo(found.x, found.cuts[0]) : found.cuts[0]],
      yCuts: [ranked ? upTo(found.y, found.cuts[1]) : found.cuts[1]],
      diagonal: ranked,
    };
  }, [found, scale, only, nameA, nameB, c]);
  const draw = useCallback<Draw>((p, colours) => drawScatter(p, colours, data), [data]);
  const overlay = useCallback<Draw>(
    (p, colours) => {
      if (hover === null) return;
      const scales = scatterScales(data, p.width, p.height);
      p.circle(scales.x(data.x[hover]), scales.y(data.y[hover]), 5, colours.panel, colours.text);
    },
    [hover, data],
  );
  const onPointer = (event: PointerEvent, px: number, py: number) => {
    const at = positions(data, width.current, HEIGHT);
    let [best, distance] = [-1, 144];
    for (let i = 0; i < data.rows.length; i++) {
      const d = (at.x[i] - px) ** 2 + (at.y[i] - py) ** 2;
      if (d < distance) [best, distance] = [i, d];
    }
    const row = best < 0 ? null : data.rows[best];
    if (event.type === "pointerup" && row !== null) go(["corpus", first.meta.id, "trajectory", first.id(pairs.a[row])]);
    else setHover(row);
  };
  return (
    <Panel
      title="Both scores"
      label="Both scores"
      tools={
        <Segments
          label="Scale"
          value={scale}
          options={[
            ["ranks", "Ranks"],
            ["values", "Values"],
          ]}
          onChange={(value) => set({ scale: value === "ranks" ? null : value }, true)}
        />
      }
    >
      <Figure
        title={`${nameB} against ${nameA}`}
        description={`Spearman ${number(found.spearman, 3)}, ${percent(found.sameSide)} on the same side.`}
        height={HEIGHT}
        {...{ draw, overlay, onSize, onPointer }}
        onLeave={() => setHover(null)}
        cursor={hover === null ? "default" : "pointer"}
        rows={() => pairRows(first, pairs.a, found)}
      >
        <div class="readout">
          {hover === null
            ? "Click a point to open it; a name below shows its kind alone."
            : `${first.id(pairs.a[hover])}: ${MOVES[found.moves[hover]]}`}
        </div>
        <div class="legend">
          {MOVES.map((name, i) => (
            <button
              key={name}
              type="button"
              aria-pressed={only === String(i)}
              onClick={() => set({ move: only === String(i) ? null : i }, true)}
            >
              <i style={{ background: moveColours(c)[i] }} />
              {name} <small>{count(found.counts[i])}</small>
            </button>
          ))}
        </div>
      </Figure>
    </Panel>
  );
}

function* pairRows(first: Corpus, rows: Uint32Array, found: Comparison) {
  yield ["id", "first", "second", "rank_first", "rank_second", "move"];
  for (let i = 0; i < rows.length; i++)
    yield [first.id(rows[i]), found.x[i], found.y[i], found.xRanks[i], found.yRanks[i], MOVES[found.moves[i]]];
}

function MovedTypes({ first, rows, found }: { first: Corpus; rows: Uint32Array; found: Comparison }) {
  const categories = [...first.columns.value.values()].filter((column) => column.kind === "category");
  const by = param("by") ?? categories.find((column) => (column.values?.length ?? 0) > 1)?.name ?? categories[0]?.name;
  const strata = useMemo(() => {
    if (!by) return [];
    const labels = Array.from(rows, (row) => first.category(by, row) ?? "none");
    return movedBy(labels, found.moves).sort((p, q) => q.toRl + q.toSft - p.toRl - p.toSft);
  }, [by, rows, first, found]);
  if (!by) return null;
  const most = Math.max(1, ...strata.map((stratum) => Math.max(stratum.toRl, stratum.toSft)));
  return (
    <Panel
      title="Who moved"
      label="Who moved"
      tools={
        <Select
          label="by"
          value={by}
          options={categories.map((c) => [c.name, c.label] as const)}
          onChange={(value) => set({ by: value }, true)}
        />
      }
    >
      <table class="facts">
        <thead>
          <tr>
            <th>{first.columns.value.get(by)?.label ?? by}</th>
            <th>n</th>
            <th>→ SFT</th>
            <th class="wide" />
            <th>→ RL</th>
            <th>RL before</th>
            <th>after</th>
          </tr>
        </thead>
        <tbody>
          {strata.map((stratum) => (
            <tr key={stratum.label}>
              <th>{stratum.label}</th>
              <td>{count(stratum.n)}</td>
              <td>{count(stratum.toSft)}</td>
              <td class="wide">
                <div class="moved-bar" aria-hidden="true">
                  <i class="to-sft" style={{ width: `${(50 * stratum.toSft) / most}%` }} />
                  <i class="to-rl" style={{ width: `${(50 * stratum.toRl) / most}%` }} />
                </div>
              </td>
              <td>{count(stratum.toRl)}</td>
              <td>{percent(stratum.before, 0)}</td>
              <td>{percent(stratum.after, 0)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Panel>
  );
}

function Movers(props: {
  first: Corpus;
  second: Corpus;
  pairs: { a: Uint32Array; b: Uint32Array };
  found: Comparison;
  nameA: string;
  nameB: string;
}) {
  const { first, pairs, found } = props;
  const only = param("move");
  const sortText = param("sort") ?? "-shift";
  const sort = { name: sortText.replace(/^-/, ""), down: sortText.startsWith("-") };
  const values = useMemo(() => {
    const shift = found.xRanks.map((rank, i) => found.yRanks[i] - rank);
    return { first: found.x, second: found.y, shift, by: shift.map(Math.abs) } as Record<string, Float64Array>;
  }, [found]);
  const rows = useMemo(() => {
    const moved = Uint32Array.from({ length: found.moves.length }, (_, i) => i).filter((i) =>
      only ? String(found.moves[i]) === only : found.moves[i] >= 2,
    );
    const key = values[sort.name === "shift" ? "by" : sort.name];
    const sign = sort.down ? -1 : 1;
    if (key) moved.sort((p, q) => sign * (key[p] - key[q]) || p - q);
    return moved;
  }, [found, values, only, sort.name, sort.down]);
  const columns = useMemo(
    (): GridColumn[] => [
      {
        key: "id",
        label: "id",
        width: "minmax(140px, 2fr)",
        sortable: false,
        render: (i) => (
          <span class="mono" title={first.id(pairs.a[i])}>
            {first.shortId(pairs.a[i])}
          </span>
        ),
      },
      {
        key: "task",
        label: "task type",
        width: "minmax(90px, 1fr)",
        sortable: false,
        render: (i) => first.category("task_type", pairs.a[i]) ?? "–",
      },
      { key: "move", label: "move", width: "90px", sortable: false, render: (i) => MOVES[found.moves[i]] },
      {
        key: "first",
        label: "first",
        title: props.nameA,
        width: "92px",
        numeric: true,
        render: (i) => number(found.x[i]),
      },
      {
        key: "second",
        label: "second",
        title: props.nameB,
        width: "92px",
        numeric: true,
        render: (i) => number(found.y[i]),
      },
      {
        key: "shift",
        label: "rank shift",
        width: "96px",
        numeric: true,
        render: (i) => `${values.shift[i] > 0 ? "+" : ""}${count(values.shift[i])}`,
      },
    ],
    [first, pairs, found, values, props.nameA, props.nameB],
  );
  const save = () => download("moved.csv", csv(pairRows(first, pairs.a, found)), "text/csv");
  return (
    <Panel
      label="Trajectories"
      className="table"
      title={
        <>
          {only ? MOVES[Number(only)] : "Changed sides"} <span class="count">{count(rows.length)}</span>
        </>
      }
      tools={
        <button type="button" class="button quiet small" title="Save all pairs as CSV" onClick={save}>
          ⤓
        </button>
      }
    >
      <Grid
        label="Trajectories that changed sides"
        {...{ rows, columns, sort }}
        onSort={(name) => set({ sort: sort.name === name && sort.down ? name : `-${name}` }, true)}
        onOpen={(i) =>
          go(["corpus", first.meta.id, "trajectory", first.id(pairs.a[i])], { m: metricOfSide("a", first) })
        }
        maxHeight="max(300px, 50vh)"
        empty="Nobody changed sides."
      />
    </Panel>
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
