import { type Cut, cutParams, moved, SIDE_NAMES, usualSides } from "../../core/cut";
import { countUpTo } from "../../core/statistics";
import { param, set } from "../../router";
import { Select } from "../../ui/parts";
import { type CorpusState, cutAtShare } from "./state";

const SIDE_OPTIONS = SIDE_NAMES.map((name, code) => [String(code), name] as const);

/** How the scores divide the corpus: by cuts, or by weights in place of sides; and the order in which the sets are written. */
export function CutControls({ state }: { state: CorpusState }) {
  const weights = state.weights.value;
  const route = state.route.value;
  return (
    <div class="cuts">
      {!weights && <Cuts state={state} />}
      <div class="cut-actions">
        <Select
          label="divide by"
          value={weights?.form ?? "none"}
          options={DIVISIONS}
          onChange={(value) =>
            set({ w: value === (route?.weights ?? "none") ? null : value, t: null, order: null }, true)
          }
        />
        {weights && weights.temperature !== null && (
          <label class="field">
            <span>temperature</span>
            <input
              class="number"
              type="number"
              min={0}
              step="any"
              value={weights.temperature}
              onChange={(event) => {
                if (Number(event.currentTarget.value) > 0) set({ w: weights.form, t: event.currentTarget.value }, true);
              }}
            />
          </label>
        )}
        {!weights && (
          <Select
            label="sets in"
            value={state.order.value ?? "corpus"}
            options={ORDERS}
            onChange={(value) => set({ order: value === (route?.order ?? "corpus") ? null : value }, true)}
          />
        )}
      </div>
      {weights && (
        <p class="fine">
          Each trajectory goes to both sides: SFT weighs its loss, RL draws tasks, by the rank of its score; the two
          weights sum to 1, and over all trajectories each side has half.
        </p>
      )}
    </div>
  );
}

const DIVISIONS = [
  ["none", "cuts"],
  ["linear", "linear weights"],
  ["logistic", "logistic weights"],
] as const;
const ORDERS = [
  ["corpus", "the corpus's order"],
  ["ascending", "ascending order of scores"],
  ["descending", "descending order of scores"],
] as const;

/** A slider for each cut; with several cuts, also where each range goes. */
function Cuts({ state }: { state: CorpusState }) {
  const ascending = state.ascending.value;
  const cut = state.cut.value;
  const [min, max] = [ascending[0] ?? 0, ascending[ascending.length - 1] ?? 1];
  const step = (max - min) / 1000 || 1;
  const several = cut.at.length > 1;
  const aboveLast = ascending.length ? 1 - countUpTo(ascending, cut.at[cut.at.length - 1]) / ascending.length : 0;
  const change = (next: Cut) => set(cutParams(next));
  const split = () => {
    const last = cut.at[cut.at.length - 1];
    // A tenth in the middle, to begin with.
    const at = several ? [last] : [cutAtShare(ascending, Math.min(1, aboveLast + 0.1)), last];
    set(cutParams({ at, sides: usualSides(at.length) }), true);
  };
  return (
    <>
      {cut.at.map((value, i) => (
        <CutRow
          key={i}
          name={several ? `${SIDE_NAMES[cut.sides[i]]} | ${SIDE_NAMES[cut.sides[i + 1]]}` : "cut"}
          {...{ min, max, step, value }}
          onMove={(next) => change(moved(cut, i, next))}
        />
      ))}
      <div class="cut-actions">
        {!several && cut.sides[1] === 2 && (
          <label class="field">
            <span>RL share</span>
            <input
              class="number"
              type="number"
              min={0}
              max={100}
              step={1}
              value={(100 * aboveLast).toFixed(1)}
              onChange={(event) =>
                change(moved(cut, 0, cutAtShare(ascending, Number(event.currentTarget.value) / 100)))
              }
            />
            <span>%</span>
          </label>
        )}
        {several && <Ranges cut={cut} change={change} />}
        <button
          type="button"
          class="button small"
          disabled={param("cut") === undefined}
          onClick={() => set({ cut: null, sides: null }, true)}
        >
          {state.route.value ? "As routed" : "Median"}
        </button>
        <button type="button" class="button small" aria-pressed={several} onClick={split}>
          {cut.at.length > 2 ? "One cut" : "Two cuts"}
        </button>
      </div>
    </>
  );
}

function Ranges({ cut, change }: { cut: Cut; change: (cut: Cut) => void }) {
  const names = cut.sides.map((_, i) =>
    i === 0 ? "lowest to" : i === cut.sides.length - 1 ? "highest to" : "then to",
  );
  return (
    <>
      {cut.sides.map((side, i) => (
        <Select
          key={i}
          label={names[i]}
          value={String(side)}
          options={SIDE_OPTIONS}
          onChange={(value) =>
            change({ ...cut, sides: cut.sides.map((other, j) => (j === i ? Number(value) : other)) })
          }
        />
      ))}
    </>
  );
}

function CutRow(props: {
  name: string;
  min: number;
  max: number;
  step: number;
  value: number;
  onMove: (value: number) => void;
}) {
  const onMove = (text: string) => {
    const value = Number(text);
    if (text !== "" && Number.isFinite(value)) props.onMove(value);
  };
  return (
    <label class="cut-row">
      <span>{props.name}</span>
      <input
        type="range"
        min={props.min}
        max={props.max}
        step={props.step}
        value={props.value}
        onInput={(event) => onMove(event.currentTarget.value)}
      />
      <input
        class="number wide"
        type="number"
        step="any"
        aria-label={`${props.name}, exactly`}
        value={Number(props.value.toPrecision(6))}
        onChange={(event) => onMove(event.currentTarget.value)}
      />
    </label>
  );
}
