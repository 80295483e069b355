import { useState } from "preact/hooks";
import { copyText } from "../core/download";
import { Menu } from "./menu";

export interface Command {
  label: string;
  text: string;
}

/** The lines that make what the page shows, each with a button that copies it. */
export function CopyCommand({ commands }: { commands: Command[] }) {
  return (
    <Menu label="Copy command" title="The lines that make what is shown">
      <div class="commands">
        {commands.map((command) => (
          <Line key={command.label} {...command} />
        ))}
      </div>
    </Menu>
  );
}

/** A line with its name, and a button that copies it. */
export function Line({ label, text }: Command) {
  const [said, say] = useState("");
  const copy = async () => {
    say((await copyText(text)) ? "Copied" : "Select it and copy");
    window.setTimeout(() => say(""), 2000);
  };
  return (
    <div class="command">
      <div class="command-head">
        <span>{label}</span>
        <button type="button" class="button small" onClick={copy}>
          {said || "Copy"}
        </button>
      </div>
      <pre tabIndex={0}>{text}</pre>
    </div>
  );
}
