import { useState } from "preact/hooks";
import type { Entry } from "../api";
import { quoted } from "../core/commands";
import { ago, count } from "../core/numbers";
import { link } from "../router";
import { source } from "../source/source";
import { Head } from "../ui/head";
import { Loading, Panel, ProblemNotice } from "../ui/parts";
import { index, indexProblem } from "./folders";

const PAGES = [
  ["corpus", "corpus"],
  ["run", "run"],
  ["results", "experiment"],
] as const;

/** The folder that a click on its name opens: the page that says most of it. */
function mainLink(entry: Entry): string | null {
  if (entry.kind === "evaluation" && entry.run) return link(["run", entry.run, "episodes", entry.id]);
  const order =
    entry.kind === "run" || entry.kind === "results"
      ? (["results", "run", "corpus"] as const)
      : (["corpus", "run", "results"] as const);
  const first = entry.kind === "run" && entry.running && entry.run ? "run" : order.find((page) => entry[page]);
  if (!first) return null;
  return link([PAGES.find(([key]) => key === first)![1], entry[first]!]);
}

/** All folders that were found, stages below their runs. */
export function IndexPage() {
  const [text, setText] = useState("");
  const found = index.value;
  if (!found)
    return indexProblem.value ? (
      <main class="page">
        <ProblemNotice problem={indexProblem.value} />
      </main>
    ) : (
      <Loading what="the folders" />
    );
  const wanted = text.toLowerCase();
  const matches = (entry: Entry) => `${entry.name} ${entry.kind} ${entry.summary}`.toLowerCase().includes(wanted);
  const children = Map.groupBy(found.entries, (entry) => entry.parent);
  const tops = found.entries.filter(
    (entry) => !entry.parent || !found.entries.some((other) => other.id === entry.parent),
  );
  const rows = tops.flatMap((top) => {
    const below = (children.get(top.id) ?? []).filter((entry) => matches(entry) || matches(top));
    return matches(top) || below.length
      ? [{ entry: top, depth: 0 }, ...below.map((entry) => ({ entry, depth: 1 }))]
      : [];
  });
  const commands = [
    { label: "Open this again", text: `gradprism studio ${found.roots.map(quoted).join(" ")}` },
    {
      label: "As one file that opens without a server",
      text: `gradprism studio ${found.roots.map(quoted).join(" ")} --export studio.html`,
    },
  ];
  return (
    <main class="page">
      <Head
        title={found.roots.join(", ") || "Folders"}
        facts={[`${count(found.entries.length)} folders`, `gradprism ${found.version}`]}
        commands={commands}
      />
      {found.problems.map((problem) => (
        <ProblemNotice key={problem.message} problem={problem} />
      ))}
      <Panel
        label="Folders"
        title="Folders"
        tools={
          <input
            type="search"
            placeholder="Filter"
            aria-label="Filter folders"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        }
      >
        <div class="wide-table">
          {" "}
          <table class="facts folders">
            <thead>
              <tr>
                <th>name</th>
                <th>kind</th>
                <th class="wide">what it holds</th>
                <th>pages</th>
                <th>changed</th>
              </tr>
            </thead>
            <tbody>
              {rows.map(({ entry, depth }) => (
                <FolderRow key={entry.id} entry={entry} depth={depth} />
              ))}
            </tbody>
          </table>
        </div>
        {rows.length === 0 && (
          <p class="fine">
            {text
              ? "No folder is called so."
              : "No probe, route, run or results folder was found here: `gradprism quickstart` makes one."}
          </p>
        )}
      </Panel>
    </main>
  );
}

function FolderRow({ entry, depth }: { entry: Entry; depth: number }) {
  const address = mainLink(entry);
  const name = depth ? entry.name.split("/").slice(-2).join("/") : entry.name;
  return (
    <tr class={depth ? "below" : ""}>
      <th>{address ? <a href={address}>{name}</a> : name}</th>
      <td>
        <span class={`kind ${entry.kind}`}>{entry.kind}</span>
      </td>
      <td class="wide">
        {entry.running && <span class="live">running</span>} {entry.summary}
        {entry.problem && (
          <div class="row-problem" role="alert">
            <strong>{entry.problem.message}</strong> {entry.problem.hint}
          </div>
        )}
      </td>
      <td class="pages">
        {PAGES.filter(([key]) => entry[key]).map(([key, page]) => (
          <a key={key} href={link([page, entry[key]!])}>
            {page}
          </a>
        ))}
      </td>
      <td class="muted">
        {source.live
          ? ago(Date.now() / 1000 - entry.modified)
          : new Date(1000 * entry.modified).toISOString().slice(0, 10)}
      </td>
    </tr>
  );
}
