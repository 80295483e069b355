import type { ComponentChildren } from "preact";
import type { Block } from "../../api";
import { Panel } from "../../ui/parts";

/** Every table of the results, as `gradprism report` prints them. */
export function DocumentPanel({ blocks }: { blocks: readonly Block[] }) {
  if (blocks.length === 0) return null;
  return (
    <Panel label="All tables" className="document">
      <details open>
        <summary>All tables</summary>
        {blocks.map((block, i) => (
          <BlockView key={i} block={block} />
        ))}
      </details>
    </Panel>
  );
}

function BlockView({ block }: { block: Block }) {
  if (block.type === "heading") return block.level <= 2 ? <h3>{block.text}</h3> : <h4>{block.text}</h4>;
  if (block.type === "paragraph") return <p>{marked(block.text)}</p>;
  if (block.type === "list") {
    return (
      <ul>
        {block.items.map((item) => (
          <li key={item}>{marked(item)}</li>
        ))}
      </ul>
    );
  }
  return (
    <div class="wide-table">
      <table class="facts">
        <thead>
          <tr>
            {block.headings.map((heading, i) => (
              <th key={i} class={i < block.names ? "name" : ""}>
                {marked(heading)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {block.rows.map((row, i) => (
            <tr key={i}>
              {row.map((cell, j) =>
                j < block.names ? <th key={j}>{marked(cell)}</th> : <td key={j}>{marked(cell)}</td>,
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Text with `code`, **strong** and *emphasis*; whatever else it holds stays text. */
function marked(text: string): ComponentChildren {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).map((part, i) => {
    if (i % 2 === 0) return part;
    if (part.startsWith("`")) return <code key={i}>{part.slice(1, -1)}</code>;
    if (part.startsWith("**")) return <strong key={i}>{part.slice(2, -2)}</strong>;
    return <em key={i}>{part.slice(1, -1)}</em>;
  });
}
