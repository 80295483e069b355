import type { Source, SourceKind } from "../api";
import { fileSource, folderSource } from "./bundle";
import { HttpSource } from "./http";

const MAKERS: Record<SourceKind, () => Source> = {
  server: () => new HttpSource(),
  file: fileSource,
  folder: folderSource,
};

const kind = (document.querySelector<HTMLMetaElement>('meta[name="gradprism-source"]')?.content ??
  "server") as SourceKind;

/** Where this page's data is. */
export const source: Source = MAKERS[kind]();
