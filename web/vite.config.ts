import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

const root = fileURLToPath(new URL(".", import.meta.url));

function filesUnder(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? filesUnder(join(folder, entry.name)) : [join(folder, entry.name)],
  );
}

const sha256 = (content: string | Uint8Array): string => createHash("sha256").update(content).digest("hex");

/** One hash of all that the built files depend on; tests/studio/test_static.py computes the same in Python, so that CI needs no npm. */
function sourcesHash(): string {
  const files = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"];
  const names = [...files, ...filesUnder(join(root, "src")).map((path) => relative(root, path))].sort();
  return sha256(names.map((name) => `${name} ${sha256(readFileSync(join(root, name)))}\n`).join(""));
}

/** Writes `build.json`: the hash of the sources and of each built file, so that a test can tell when they part. */
function buildRecord(): Plugin {
  return {
    name: "build-record",
    enforce: "post",
    // The server serves, and an exported page replaces, exactly these two elements.
    transformIndexHtml: {
      order: "post",
      handler: (html) =>
        html
          .replace(/<script type="module"[^>]*>/, '<script type="module" src="app.js">')
          .replace(/<link rel="stylesheet"[^>]*>/, '<link rel="stylesheet" href="app.css">'),
    },
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        const files: Record<string, string> = {};
        for (const [name, file] of Object.entries(bundle).sort()) {
          // Both must stand inline in a page, which these would end.
          if (file.type === "chunk") file.code = file.code.replace(/<\/(script|style)/gi, "<\\/$1");
          files[name] = sha256(file.type === "chunk" ? file.code : file.source);
        }
        const record = { sources_sha256: sourcesHash(), files };
        this.emitFile({ type: "asset", fileName: "build.json", source: `${JSON.stringify(record, null, 1)}\n` });
      },
    },
  };
}

export default defineConfig({
  root,
  base: "./",
  build: {
    outDir: "../src/gradprism/studio/static",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    // Names without hashes: git shows a change of a built file as a change.
    rollupOptions: {
      output: { format: "iife", entryFileNames: "app.js", assetFileNames: "app[extname]", codeSplitting: false },
    },
  },
  plugins: [buildRecord()],
  server: { proxy: { "/api": "http://127.0.0.1:8642" } },
});
