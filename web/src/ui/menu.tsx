import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

/** A button that opens a small panel; Escape or a click elsewhere closes it. */
export function Menu(props: {
  label: ComponentChildren;
  title?: string;
  className?: string;
  align?: "left" | "right";
  children: ComponentChildren | ((close: () => void) => ComponentChildren);
}) {
  const [open, setOpen] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  const button = useRef<HTMLButtonElement>(null);
  const close = () => setOpen(false);
  useEffect(() => {
    if (!open) return;
    const away = (event: PointerEvent) => box.current?.contains(event.target as Node) || close();
    const onEscape = (event: KeyboardEvent) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      close();
      button.current?.focus();
    };
    document.addEventListener("pointerdown", away);
    box.current?.addEventListener("keydown", onEscape);
    const node = box.current;
    return () => {
      document.removeEventListener("pointerdown", away);
      node?.removeEventListener("keydown", onEscape);
    };
  }, [open]);
  return (
    <div class="menu" ref={box}>
      <button
        type="button"
        ref={button}
        class={props.className ?? "button"}
        title={props.title}
        aria-label={props.title}
        aria-expanded={open}
        onClick={() => setOpen(!open)}
      >
        {props.label}
      </button>
      {open && (
        <div class={`menu-panel ${props.align ?? "right"}`}>
          {typeof props.children === "function" ? props.children(close) : props.children}
        </div>
      )}
    </div>
  );
}
