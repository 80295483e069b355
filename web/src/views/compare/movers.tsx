import { useMemo } from "preact/hooks";
import { type Comparison, MOVES, movedBy } from "../../core/comparison";
import type { Corpus } from "../../core/corpus";
import { csv, download } from "../../core/download";
import { count, number, percent } from "../../core/numbers";
import { go, param, set } from "../../router";
import { Grid, type GridColumn } from "../../ui/grid";
import { Panel, Select } from "../../ui/parts";

import { metricOfSide } from "./metric";
import { pairRows } from "./scatter";

/** Who moved, by a category. */
export function MovedTypes({ first, rows, found }: { first: Corpus; rows: Uint32Array; found: Comparison }) {
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

/** Those that changed sides, or are of one kind. */
export function Movers(props: {
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
