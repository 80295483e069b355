import type { Problem } from "../api";

/** What a source rejects with: a line that says what is wrong, and one that says what to do. `status` is HTTP's; 0 where there was no answer. */
export class Failed extends Error implements Problem {
  constructor(
    message: string,
    readonly hint: string,
    readonly status: number,
  ) {
    super(message);
  }
}

export function problemOf(error: unknown): Problem {
  if (error instanceof Failed) return error;
  const message = error instanceof Error ? error.message : String(error);
  return {
    message: `this page made a mistake: ${message}`,
    hint: "load it again; if that does not help, report it with what you did",
  };
}
