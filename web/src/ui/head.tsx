import type { ComponentChildren } from "preact";
import { type Command, CopyCommand } from "./command";

/** The first lines of a page: what it is of, and the commands that make the same. */
export function Head(props: {
  title: ComponentChildren;
  facts: readonly string[];
  commands?: Command[];
  children?: ComponentChildren;
}) {
  return (
    <header class="head">
      <div>
        <h1>{props.title}</h1>
        <p class="head-facts">{props.facts.filter(Boolean).join(" · ")}</p>
      </div>
      <div class="head-tools">
        {props.children}
        {props.commands && <CopyCommand commands={props.commands} />}
      </div>
    </header>
  );
}
