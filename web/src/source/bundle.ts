// An exported page: the same resources as the server's, compressed inside the page or in files beside it.
import { BLOCK, episodeBlock, paths, type Source, tokenBlock, trajectoryBlock } from "../api";
import { decodeColumns, type NumericColumn } from "./columns";
import { Failed } from "./failed";

declare global {
  var gradprismFiles: Record<string, string> | undefined;
  var gradprismData: ((path: string, base64: string) => void) | undefined;
}

/** Gives the compressed text of a resource, or undefined where the export has none. */
type Read = (path: string) => Promise<string | undefined> | string | undefined;

export class BundleSource implements Source {
  readonly live = false;
  private readonly opened = new Map<string, Promise<ArrayBuffer>>();

  constructor(private readonly read: Read) {}

  async json<T>(path: string): Promise<T> {
    const [name] = path.split("?");
    const within = blockOf(name);
    const value = JSON.parse(new TextDecoder().decode(await this.resource(within?.block ?? name)));
    return (within ? value[within.entry] : value) as T;
  }

  async bytes(path: string): Promise<ArrayBuffer> {
    const [name, query] = path.split("?");
    const [, id, what] = /^corpus\/([^/]+)\/(.*)$/.exec(name) ?? [];
    if (what === "search.bin") return this.search(id, new URLSearchParams(query).get("q") ?? "");
    const row = /^distances\/(\d+)\.bin$/.exec(what ?? "");
    if (row) return this.distances(id, Number(row[1]));
    return this.resource(name);
  }

  post<T>(): Promise<T> {
    return Promise.reject(
      new Failed("an exported page changes nothing", "open the folder with `gradprism studio`", 422),
    );
  }

  private resource(name: string): Promise<ArrayBuffer> {
    let bytes = this.opened.get(name);
    if (!bytes) {
      bytes = this.open(name);
      // Blocks of texts are many, and each is read once in a while: the last few are enough.
      if (/\/\d+\.json$/.test(name)) forgetOldest(this.opened, 24);
      this.opened.set(name, bytes);
    }
    return bytes;
  }

  private async open(name: string): Promise<ArrayBuffer> {
    const text = await this.read(name);
    if (text === undefined) throw missing(name);
    const stream = new Blob([fromBase64(text) as BlobPart]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  /** Rows with `q` in any text, whatever its case. */
  private async search(id: string, q: string): Promise<ArrayBuffer> {
    const { n } = await this.json<{ n: number }>(paths.corpus(id));
    const wanted = q.toLowerCase();
    const rows: number[] = [];
    for (let k = 0; k * BLOCK < n; k++) {
      const entries = await this.json<Json[]>(trajectoryBlock(id, k));
      entries.forEach((entry, i) => {
        if (entry.id.toLowerCase().includes(wanted) || hasText(entry.messages, wanted)) rows.push(k * BLOCK + i);
      });
    }
    return asColumn("row", "u32", new Uint32Array(rows));
  }

  /** Euclidean distances of all profiles to one row's. */
  private async distances(id: string, row: number): Promise<ArrayBuffer> {
    const { n } = await this.json<{ n: number }>(paths.corpus(id));
    const profiles = (decodeColumns(await this.resource(paths.profiles(id))).columns[0] as NumericColumn).data;
    const units = profiles.length / n;
    const result = new Float32Array(n);
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let j = 0; j < units; j++) sum += (profiles[i * units + j] - profiles[row * units + j]) ** 2;
      result[i] = Math.sqrt(sum);
    }
    return asColumn("distance", "f32", result);
  }
}

/** The page has all in itself. */
export function fileSource(): Source {
  return new BundleSource(
    (path) => document.querySelector(`script[data-path="${CSS.escape(path)}"]`)?.textContent ?? undefined,
  );
}

/** The page has its data in scripts beside it, since what is opened from a disk may fetch nothing. */
export function folderSource(): Source {
  const waiting = new Map<string, (base64: string) => void>();
  globalThis.gradprismData = (path, base64) => waiting.get(path)?.(base64);
  const list = new Promise<void>((done, failed) => addScript("data.js", done, failed));
  return new BundleSource(async (path) => {
    await list;
    const file = globalThis.gradprismFiles?.[path];
    if (file === undefined) return undefined;
    return new Promise((done, failed) => {
      waiting.set(path, done);
      addScript(file, () => waiting.delete(path), failed);
    });
  });
}

function addScript(src: string, done: () => void, failed: (reason: Failed) => void): void {
  const script = document.createElement("script");
  script.src = src;
  script.onload = () => {
    done();
    script.remove();
  };
  script.onerror = () => failed(new Failed(`${src} is not beside this page`, "keep the exported folder together", 404));
  document.head.append(script);
}

function missing(name: string): Failed {
  const what = /\/(trajectories|tokens)\//.test(name) ? "the texts are" : `${name} is`;
  return new Failed(`${what} not in this exported page`, "open the folder with `gradprism studio`", 404);
}

function blockOf(name: string): { block: string; entry: number } | null {
  const found =
    /^corpus\/([^/]+)\/(trajectory|tokens)\/(\d+)\.json$/.exec(name) ??
    /^run\/([^/]+)\/episodes\/([^/]+)\/(\d+)\.json$/.exec(name);
  if (!found) return null;
  const [, id, part, number] = found;
  const [k, entry] = [Math.floor(Number(number) / BLOCK), Number(number) % BLOCK];
  if (name.startsWith("run/")) return { block: episodeBlock(id, part, k), entry };
  // A block of tokens has the name that a row of them would have: the two are told apart by who asks.
  return { block: part === "tokens" ? tokenBlock(id, k) : trajectoryBlock(id, k), entry };
}

interface Json {
  id: string;
  messages: { content: string; reasoning: string; tool_calls: unknown[] }[];
}

function hasText(messages: Json["messages"], wanted: string): boolean {
  return messages.some(
    (message) =>
      message.content.toLowerCase().includes(wanted) ||
      message.reasoning.toLowerCase().includes(wanted) ||
      (message.tool_calls.length > 0 && JSON.stringify(message.tool_calls).toLowerCase().includes(wanted)),
  );
}

function asColumn(name: string, dtype: "u32" | "f32", data: Uint32Array | Float32Array): ArrayBuffer {
  const column = { name, label: name, kind: "measure", dtype, length: data.length, start: 0, size: data.byteLength };
  const header = new TextEncoder().encode(JSON.stringify({ version: "", n: data.length, columns: [column] }));
  const size = Math.ceil((header.length + 4) / 8) * 8 - 4;
  const result = new Uint8Array(4 + size + data.byteLength).fill(32);
  new DataView(result.buffer).setUint32(0, size, true);
  result.set(header, 4);
  result.set(new Uint8Array(data.buffer), 4 + size);
  return result.buffer;
}

function fromBase64(text: string): Uint8Array {
  const trimmed = text.trim();
  if ("fromBase64" in Uint8Array)
    return (Uint8Array as unknown as { fromBase64(text: string): Uint8Array }).fromBase64(trimmed);
  return Uint8Array.from(atob(trimmed), (letter) => letter.charCodeAt(0));
}

function forgetOldest(opened: Map<string, unknown>, most: number): void {
  const blocks = [...opened.keys()].filter((name) => /\/\d+\.json$/.test(name));
  for (const name of blocks.slice(0, Math.max(0, blocks.length - most))) opened.delete(name);
}
