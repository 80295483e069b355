import { useEffect, useMemo, useState } from "preact/hooks";
import { type Problem, paths, type Tokens } from "../../api";
import { count, number } from "../../core/numbers";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import { Loading, Notice, ProblemNotice } from "../../ui/parts";
import type { CorpusState } from "../corpus/state";

const STEP = 3000; // tokens drawn at once

/** The text with the chat template's marks, token by token: what is masked is pale, what the loss counts is coloured by its nats. */
export function TokensView({ state, row }: { state: CorpusState; row: number }) {
  const { meta } = state.corpus;
  const [tokens, setTokens] = useState<Tokens | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    if (!meta.tokens) return;
    let current = true;
    source.json<Tokens>(paths.tokens(meta.id, row, meta.version)).then(
      (found) => current && setTokens(found),
      (error) => current && setProblem(problemOf(error)),
    );
    return () => {
      current = false;
    };
  }, [meta, row]);
  if (!meta.tokens)
    return <Notice kind="info">{meta.tokens_hint || "The tokens of this corpus are not known."}</Notice>;
  if (problem) return <ProblemNotice problem={problem} />;
  if (!tokens) return <Loading what="the tokens" />;
  return <TokenText tokens={tokens} hint={meta.losses ? "" : meta.tokens_hint} />;
}

function TokenText({ tokens, hint }: { tokens: Tokens; hint: string }) {
  const [shown, setShown] = useState(STEP);
  const [over, setOver] = useState<number | null>(null);
  const { starts, response, reach } = useMemo(() => measured(tokens), [tokens]);
  const n = tokens.lengths.length;
  const nResponse = tokens.response.reduce((sum, [from, to]) => sum + to - from, 0);
  const spans = useMemo(() => {
    const result = [];
    for (let i = 0; i < Math.min(n, shown); i++) {
      const text = tokens.text.slice(starts[i], starts[i] + tokens.lengths[i]);
      const loss = tokens.losses[i] ?? null;
      const strength = loss === null ? 0 : Math.round(100 * Math.min(1, loss / reach));
      result.push(
        <span
          key={i}
          data-i={i}
          class={response[i] ? "own" : ""}
          style={strength > 2 ? { "--loss-share": `${strength}%` } : undefined}
        >
          {text}
        </span>,
      );
    }
    return result;
  }, [tokens, shown, starts, response, reach, n]);
  const said = over === null ? null : saying(tokens, starts, over, response[over]);
  return (
    <div class="tokens">
      <div class="readout sticky" aria-live="off">
        {said ??
          `${count(n)} tokens, ${count(nResponse)} of responses${tokens.truncated ? `, ${count(tokens.truncated)} cut off` : ""}`}
        {tokens.losses.length > 0 && (
          <span class="loss-key">
            0 <i /> {number(reach, 2)} nats
          </span>
        )}
      </div>
      {hint && tokens.losses.length === 0 && <p class="fine">{hint}</p>}
      <pre
        class="token-text"
        onPointerOver={(event) => setOver(Number((event.target as HTMLElement).dataset.i ?? Number.NaN) || null)}
        onPointerLeave={() => setOver(null)}
      >
        {spans}
      </pre>
      {shown < n && (
        <button type="button" class="button small" onClick={() => setShown(shown + STEP)}>
          Show {count(Math.min(STEP, n - shown))} more tokens
        </button>
      )}
    </div>
  );
}

function measured(tokens: Tokens) {
  const starts = new Uint32Array(tokens.lengths.length);
  for (let i = 1; i < starts.length; i++) starts[i] = starts[i - 1] + tokens.lengths[i - 1];
  const response = new Uint8Array(starts.length);
  for (const [from, to] of tokens.response) response.fill(1, from, to);
  const losses = tokens.losses.filter((loss) => loss !== null).sort((a, b) => a - b);
  // A few tokens are far beyond all others: the colours end where a twentieth is above.
  return { starts, response, reach: Math.max(0.5, losses[Math.floor(0.95 * losses.length)] ?? 0) };
}

function saying(tokens: Tokens, starts: Uint32Array, i: number, own: number): string {
  const text = JSON.stringify(tokens.text.slice(starts[i], starts[i] + tokens.lengths[i]));
  const loss = tokens.losses[i] ?? null;
  return `token ${i}: ${text} · ${own ? (loss === null ? "in the response" : `${number(loss, 3)} nats, p ${number(Math.exp(-loss), 2)}`) : "masked"}`;
}
