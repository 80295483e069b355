import { type ComponentChildren, options, type VNode } from "preact";
import { visible } from "../core/plain";

const ATTRIBUTES = ["title", "aria-label", "placeholder"] as const;

/**
 * Makes every text that an element shows visible, whoever wrote it: ids, task types and turns come from corpora, which may hold signs that
 * turn the direction of reading. Here, since no component can forget it; values of fields and links stay what they are.
 */
export function showAllText(): void {
  const before = options.vnode;
  options.vnode = (vnode) => {
    if (typeof vnode.type === "string") plain(vnode as VNode<Record<string, unknown>>);
    before?.(vnode);
  };
}

function plain(vnode: VNode<Record<string, unknown>>): void {
  const { props } = vnode;
  if (props.children !== undefined) props.children = shown(props.children as ComponentChildren);
  for (const name of ATTRIBUTES) if (typeof props[name] === "string") props[name] = visible(props[name]);
}

function shown(children: ComponentChildren): ComponentChildren {
  if (typeof children === "string") return visible(children);
  return Array.isArray(children) ? children.map(shown) : children;
}
