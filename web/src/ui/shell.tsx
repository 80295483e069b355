import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { link, place } from "../router";
import { source } from "../source/source";
import { type Choice, choice } from "../theme";
import { corpusEntry, entries, indexProblem, runEntry } from "../views/folders";
import { Notice } from "./parts";

const THEMES: Record<Choice, { next: Choice; text: string }> = {
  system: { next: "light", text: "Theme: as the system" },
  light: { next: "dark", text: "Theme: light" },
  dark: { next: "system", text: "Theme: dark" },
};

export function Shell({ children }: { children: ComponentChildren }) {
  const [help, setHelp] = useState(false);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (/^(INPUT|TEXTAREA|SELECT)$/.test((event.target as Element).tagName)) return;
      if (event.key === "?") setHelp(true);
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  const theme = THEMES[choice.value];
  return (
    <>
      <button type="button" class="skip" onClick={toContent}>
        To the content
      </button>
      <header class="bar">
        <a class="brand" href="#/">
          <Prism /> gradprism <span>studio</span>
        </a>
        <Crumbs />
        <div class="bar-tools">
          {!source.live && <span class="muted">exported</span>}
          <button type="button" class="button quiet" title="Keys (?)" aria-label="Keys" onClick={() => setHelp(true)}>
            ?
          </button>
          <button
            type="button"
            class="button quiet"
            title={theme.text}
            aria-label={theme.text}
            onClick={() => (choice.value = theme.next)}
          >
            {{ system: "◐", light: "○", dark: "●" }[choice.value]}
          </button>
        </div>
      </header>
      {indexProblem.value && (
        <Notice kind="bad">
          {indexProblem.value.message}; {indexProblem.value.hint}
        </Notice>
      )}
      {children}
      {help && <Help onClose={() => setHelp(false)} />}
    </>
  );
}

function toContent(): void {
  const main = document.querySelector<HTMLElement>("main");
  main?.setAttribute("tabindex", "-1");
  main?.focus();
}

function Crumbs() {
  const [kind, id, part] = place.value.path;
  if (!kind) return <nav class="crumbs" aria-label="Where you are" />;
  const corpus = kind === "corpus" && id ? corpusEntry(id) : undefined;
  const run = (kind === "run" || kind === "experiment") && id ? runEntry(id) : undefined;
  const entry = corpus ?? run;
  const parent = entry?.parent ? entries.value.find((other) => other.id === entry.parent) : undefined;
  const own = { ...place.value.params };
  delete own.view;
  return (
    <nav class="crumbs" aria-label="Where you are">
      <a href="#/">folders</a>
      {parent && (
        <>
          <i>/</i>
          <a href={link([parent.run ? "run" : "experiment", parent.run ?? parent.results ?? ""])}>{parent.name}</a>
        </>
      )}
      <i>/</i>
      {part && id ? (
        <a href={link([kind, id], kind === "corpus" ? own : {})}>{entry?.name.split("/").at(-1) ?? kind}</a>
      ) : (
        <span>{entry ? (parent ? entry.name.split("/").slice(-1)[0] : entry.name) : kind}</span>
      )}
      {part && (
        <>
          <i>/</i>
          <span>{part}</span>
        </>
      )}
    </nav>
  );
}

function Prism() {
  return (
    <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
      <path d="M8 2 14 13H2Z" fill="none" stroke="currentColor" stroke-width="1.4" stroke-linejoin="round" />
      <path d="M8.6 8 15.5 6.2" class="ray-sft" />
      <path d="M8.8 8.6 15.5 10" class="ray-rl" />
      <path d="M.5 9.5 7.2 8" stroke="currentColor" stroke-width="1.2" />
    </svg>
  );
}

const KEYS = [
  ["/", "search the table"],
  ["↑ ↓, PgUp PgDn, Home End", "move in a table that has the focus"],
  ["Enter", "open the row"],
  ["Space, Shift Space", "select a row, or all up to there"],
  ["j, k", "the next and the previous trajectory or episode"],
  ["u", "back up to the table"],
  ["← →", "move a cut whose slider has the focus"],
  ["?", "this list"],
] as const;

function Help({ onClose }: { onClose: () => void }) {
  return (
    <dialog
      class="help"
      ref={(node) => {
        if (node && !node.open) node.showModal();
      }}
      onClose={onClose}
      onClick={(event) => event.target === event.currentTarget && event.currentTarget.close()}
    >
      <h2>Keys</h2>
      <dl class="pairs">
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <p class="fine">
        Every state of a page is its address: copy it to come back, or to show it to others who run the studio on the
        same folder.
      </p>
      <form method="dialog">
        <button type="submit" class="button">
          Close
        </button>
      </form>
    </dialog>
  );
}
