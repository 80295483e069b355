import { go, link, params } from "../../router";
import type { CorpusState } from "./state";

/** The link to a trajectory, which keeps the corpus's filters, so that its neighbours in the table are a key away. */
export const trajectoryLink = (state: CorpusState, row: number): string =>
  link(["corpus", state.corpus.meta.id, "trajectory", state.corpus.id(row)], params.value);

export function openTrajectory(state: CorpusState, row: number): void {
  go(["corpus", state.corpus.meta.id, "trajectory", state.corpus.id(row)], params.value);
}
