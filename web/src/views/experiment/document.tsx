import type { ComponentChildren } from "preact";
import type { Block } from "../../api";
import { Panel } from "../../ui/parts";

/** Every table of the results, as `gradprism report` prints them. */
export function DocumentPanel({ blocks }: { blocks: readonly Block[] }) {
  if (blocks.length === 0) return null;
  return (
    <Panel label="Tables" title="Tables" className="document">
      {sections(blocks).map(({ title, blocks: own }, i) => (
        <details key={i}>
          <summary>{title}</summary>
          {own.map((block, j) => (
            <BlockView key={j} block={block} />
          ))}
        </details>
      ))}
    </Panel>
  );
}

/** The blocks below each heading of the first two levels. */
function sections(blocks: readonly Block[]): { title: string; blocks: Block[] }[] {
  const found: { title: string; blocks: Block[] }[] = [];
  for (const block of blocks) {
    if (block.type === "heading" && block.level <= 2) found.push({ title: block.text, blocks: [] });
    else {
      if (found.length === 0) found.push({ title: "Summary", blocks: [] });
      found[found.length - 1].blocks.push(block);
    }
  }
  return found.filter((section) => section.blocks.length > 0);
}

function BlockView({ block }: { block: Block }) {
  if (block.type === "heading") return <h3>{block.text}</h3>;
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
