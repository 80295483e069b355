import type { Corpus } from "../../core/corpus";
import { param } from "../../router";

/** The score that is compared of the first or the second: as the address says, the second by default as the first. */
export const metricOfSide = (which: "a" | "b", corpus: Corpus): string => {
  const wanted = param(`m${which}`) ?? (which === "b" ? param("ma") : undefined);
  return wanted && corpus.numeric(wanted) ? wanted : corpus.meta.metrics[0];
};
