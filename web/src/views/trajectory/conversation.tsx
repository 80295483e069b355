import { useMemo } from "preact/hooks";
import type { Message, ToolCall, Trajectory, TurnScore } from "../../api";
import { count, number } from "../../core/numbers";
import { mixed } from "../../plots/heatmap";
import { palette } from "../../theme";
import { Folded } from "../../ui/folded";
import type { CorpusState } from "../corpus/state";

const ROLES = { system: "system", user: "user", assistant: "assistant", tool: "tool" } as const;

/** Turns as they were said. A bar at the left marks what the loss counts; its colour is the turn's own concentration. */
export function Conversation({ state, trajectory }: { state: CorpusState; trajectory: Trajectory }) {
  const scores = useTurnScores(state, trajectory);
  return (
    <>
      {scores ? <TurnStrip scores={scores} /> : <Legend state={state} />}
      <ol class="turns">
        {trajectory.messages.map((message, i) => (
          <Turn
            key={i}
            message={message}
            score={message.turn === null ? undefined : scores?.byTurn.get(message.turn)}
            metric={scores?.metric}
          />
        ))}
      </ol>
    </>
  );
}

interface Scored {
  turn: TurnScore;
  value: number | null;
  colour: string;
}

interface TurnScores {
  metric: string;
  list: Scored[];
  byTurn: Map<number, Scored>;
}

/** Turns' concentrations by the metric that is cut, coloured from the lowest of this trajectory to its highest. */
function useTurnScores(state: CorpusState, trajectory: Trajectory): TurnScores | null {
  const c = palette.value;
  const wanted = state.metric.value;
  return useMemo(() => {
    if (trajectory.turns.length === 0) return null;
    const known = Object.keys(trajectory.turns[0].scores);
    const metric = known.includes(wanted) ? wanted : known[0];
    const values = trajectory.turns.map((turn) => turn.scores[metric] ?? null);
    const given = values.filter((value) => value !== null);
    const [low, high] = [Math.min(...given), Math.max(...given)];
    const list = trajectory.turns.map((turn, i) => {
      const value = values[i];
      const share = value === null ? 0.5 : (value - low) / (high - low || 1);
      return { turn, value, colour: value === null ? c.neither : mixed(c.sft, c.rl, share) };
    });
    return { metric, list, byTurn: new Map(list.map((each) => [each.turn.turn, each])) };
  }, [trajectory, wanted, c]);
}

function TurnStrip({ scores }: { scores: TurnScores }) {
  const values = scores.list.flatMap(({ value }) => (value === null ? [] : [value]));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const jump = (turn: number) => document.getElementById(`turn-${turn}`)?.scrollIntoView({ block: "center" });
  return (
    <div class="turn-strip">
      <div class="strip-bars" role="group" aria-label={`${scores.metric} of each turn by itself`}>
        {scores.list.map(({ turn, value, colour }) => (
          <button
            key={turn.turn}
            type="button"
            title={`turn ${turn.turn + 1}: ${scores.metric} ${number(value)}, loss ${number(turn.loss)}, ${count(turn.n_response_tokens)} tokens`}
            aria-label={`Turn ${turn.turn + 1}, ${scores.metric} ${number(value)}`}
            onClick={() => jump(turn.turn)}
          >
            <i
              style={{
                background: colour,
                height: `${value === null ? 2 : 4 + 26 * ((value - low) / (high - low || 1))}px`,
              }}
            />
          </button>
        ))}
      </div>
      <p class="fine">
        {scores.metric} of each turn by itself, {number(low, 3)} to {number(high, 3)}
      </p>
    </div>
  );
}

function Legend({ state }: { state: CorpusState }) {
  return (
    <p class="fine">
      <span class="mask-key" /> in the loss; what is masked is set smaller.
      {state.corpus.meta.per_turn
        ? ""
        : " Single turns were not probed: --per-turn colours each by its own concentration."}
    </p>
  );
}

function Turn({ message, score, metric }: { message: Message; score?: Scored; metric?: string }) {
  const counted = message.role === "assistant" && message.weight > 0;
  return (
    <li
      class={`turn ${ROLES[message.role]} ${counted ? "counted" : ""}`}
      id={message.turn === null ? undefined : `turn-${message.turn}`}
    >
      <div class="turn-bar" style={score && { background: score.colour }} />
      <div class="turn-body">
        <header>
          <span class="role">{message.role}</span>
          {message.name && <span class="mono">{message.name}</span>}
          {message.turn !== null && <span class="muted">turn {message.turn + 1}</span>}
          {message.role === "assistant" && !counted && <span class="tag">masked</span>}
          {counted && message.weight !== 1 && <span class="tag">weight {number(message.weight)}</span>}
          {score && (
            <span class="muted turn-figures">
              {metric} {number(score.value)} · loss {number(score.turn.loss)} · {count(score.turn.n_response_tokens)}{" "}
              tokens
            </span>
          )}
        </header>
        {message.reasoning && (
          <details class="reasoning" open={message.reasoning.length < 400}>
            <summary>reasoning</summary>
            <Folded text={message.reasoning} />
          </details>
        )}
        {message.content && <Folded text={message.content} />}
        {message.tool_calls.map((call, i) => (
          <Call key={i} call={call} />
        ))}
      </div>
    </li>
  );
}

function Call({ call }: { call: ToolCall }) {
  const given = typeof call.arguments === "string" ? call.arguments : JSON.stringify(call.arguments, null, 1);
  return (
    <div class="call">
      <div class="call-name">
        <span class="tag">call</span> <span class="mono">{call.name}</span>
        {call.id && <small class="muted"> {call.id}</small>}
      </div>
      {given && given !== "{}" && <Folded text={given} />}
    </div>
  );
}
