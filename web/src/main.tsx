import { render } from "preact";
import { useEffect } from "preact/hooks";
import { place } from "./router";
import { source } from "./source/source";
import "./styles/base.css";
import "./styles/plots.css";
import "./styles/grid.css";
import "./styles/views.css";
import { applyTheme } from "./theme";
import { Shell } from "./ui/shell";
import { showAllText } from "./ui/shown";
import { ComparePage } from "./views/compare/page";
import { CorpusPage } from "./views/corpus/page";
import { ExperimentPage } from "./views/experiment/page";
import { follow, index } from "./views/folders";
import { IndexPage } from "./views/index-page";
import { EpisodesPage } from "./views/run/episodes";
import { RunPage } from "./views/run/page";
import { TrajectoryPage } from "./views/trajectory/page";

function View() {
  const [kind, id, part, ...rest] = place.value.path;
  if (kind === "corpus" && id)
    return part === "trajectory" && rest[0] ? <TrajectoryPage id={id} trajectory={rest[0]} /> : <CorpusPage id={id} />;
  if (kind === "compare") return <ComparePage />;
  if (kind === "run" && id)
    return part === "episodes" && rest[0] ? (
      <EpisodesPage id={id} evaluation={rest[0]} episode={rest[1]} />
    ) : (
      <RunPage id={id} />
    );
  if (kind === "experiment" && id) return <ExperimentPage id={id} />;
  return <IndexPage />;
}

function App() {
  // Another page begins at its top; another state of the same page stays where it is.
  const page = place.value.path.join("/");
  useEffect(() => window.scrollTo(0, 0), [page]);
  return (
    <Shell>
      <View />
    </Shell>
  );
}

showAllText();
applyTheme();
follow();
// An exported page of one folder opens on it.
if (!source.live && !location.hash) {
  const stop = index.subscribe((found) => {
    const only = found?.entries.filter((entry) => !entry.parent) ?? [];
    if (only.length !== 1) return;
    const [entry] = only;
    const target = entry.results
      ? ["experiment", entry.results]
      : entry.run
        ? ["run", entry.run]
        : entry.corpus
          ? ["corpus", entry.corpus]
          : null;
    if (target && !location.hash) location.hash = `#/${target.join("/")}`;
    queueMicrotask(() => stop());
  });
}
render(<App />, document.getElementById("app")!);
