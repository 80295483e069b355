import type { RunView } from "../api";

const HASH = /-[0-9a-f]{8,}$/;

/** Short names of the models that an evaluation played: a stage's kind, with the beginning of its hash where two would be the same. */
export function agentNames(run: RunView): ReadonlyMap<string, string> {
  const agents = [...new Set(run.evaluations.map((evaluation) => evaluation.agent))];
  const bare = agents.map((agent) => agent.replace(HASH, ""));
  const names = agents.map((agent, i) =>
    bare.indexOf(bare[i]) === bare.lastIndexOf(bare[i]) ? bare[i] : agent.slice(0, bare[i].length + 5),
  );
  return new Map(agents.map((agent, i) => [agent, names[i]]));
}

/** Evaluations in the order in which their models were made: the base first. */
export function inOrder(run: RunView): RunView["evaluations"] {
  const stages = run.stages.map((stage) => stage.name);
  return [...run.evaluations].sort((a, b) => stages.indexOf(a.agent) - stages.indexOf(b.agent));
}
