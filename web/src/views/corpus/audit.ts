import { useEffect, useState } from "preact/hooks";
import { type Audit, type Problem, paths } from "../../api";
import { problemOf } from "../../source/failed";
import { source } from "../../source/source";
import type { CorpusState } from "./state";

export interface Audited {
  audit: Audit | null;
  problem: Problem | null;
  /** Of another cut than the one that is shown. */
  stale: boolean;
}

const WAIT = 350; // ms that the slider rests before an audit is asked for

/** The audit of the cut that is shown, some moment after it was last moved. In an exported page there is that of the median. */
export function useAudit(state: CorpusState): Audited {
  const [found, setFound] = useState<Audited>({ audit: null, problem: null, stale: true });
  const column = state.metric.value;
  const cut = state.cut.value;
  const threshold = cut.at.at(-1) ?? state.median.value;
  const { id, version } = state.corpus.meta;
  const route = state.route.value;
  const asRouted = state.isAsRouted.value;
  const ofCorpus = state.metrics.value.includes(column);
  useEffect(() => {
    if (route && asRouted) {
      setFound({ audit: route.audit, problem: null, stale: false });
      return;
    }
    if (!ofCorpus) return;
    let current = true;
    setFound((before) => ({ ...before, stale: true }));
    const timer = window.setTimeout(async () => {
      try {
        const audit = source.live
          ? await source.json<Audit>(paths.audit(id, column, threshold, version))
          : ((await source.json<Record<string, Audit>>(paths.audit(id, column, threshold, version)))[column] ?? null);
        if (current) setFound({ audit, problem: null, stale: audit?.threshold !== threshold });
      } catch (error) {
        if (current) setFound({ audit: null, problem: problemOf(error), stale: false });
      }
    }, WAIT);
    return () => {
      current = false;
      window.clearTimeout(timer);
    };
  }, [id, version, column, ofCorpus, threshold, cut, route, asRouted]);
  return found;
}
