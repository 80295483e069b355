import { useState } from "preact/hooks";
import { bytes } from "../core/numbers";
import { beginning } from "../core/plain";

const FIRST = 3000;
const STEP = 50_000;

/** A text, as text; a long one is shown in steps, so that a turn of megabytes stops no page. */
export function Folded({
  text,
  className = "text",
  first = FIRST,
}: {
  text: string;
  className?: string;
  first?: number;
}) {
  const [length, setLength] = useState(first);
  const shown = text.length <= length * 1.2 ? text : beginning(text, length);
  const left = text.length - shown.length;
  return (
    <>
      <pre class={className}>{shown}</pre>
      {left > 0 && (
        <button type="button" class="button small" onClick={() => setLength(shown.length + STEP)}>
          Show {left > STEP ? `${bytes(STEP)} more` : "the rest"} <small>({bytes(left)} left)</small>
        </button>
      )}
    </>
  );
}
