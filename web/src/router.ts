// The state of the page is its address: `#/corpus/ID?metric=gini&cut=0.35`. Views read `place`, and change it by `go` and `set`.
import { computed, type ReadonlySignal, signal } from "@preact/signals";

export interface Place {
  path: readonly string[];
  params: Readonly<Record<string, string>>;
}

export type Params = Record<string, string | number | null | undefined>;

export function parsePlace(hash: string): Place {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return {
    path: path.split("/").filter(Boolean).map(decoded),
    params: Object.fromEntries(new URLSearchParams(query)),
  };
}

/** The link to a place; parameters without a value are left out. */
export function link(path: readonly string[], params: Params = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
  }
  // What an address need not escape is easier to read, and to shorten by hand.
  const text = query.toString().replace(/%(2C|3A|2F|3D|3B)/g, (code) => decodeURIComponent(code));
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

export const place = signal<Place>(parsePlace(location.hash));
export const params = computed(() => place.value.params);

const single = new Map<string, ReadonlySignal<string | undefined>>();

/** One parameter: what follows from it is not computed again when another one changes, as the cut does with every move of its slider. */
export function param(name: string): string | undefined {
  let found = single.get(name);
  if (!found) {
    found = computed(() => params.value[name]);
    single.set(name, found);
  }
  return found.value;
}

window.addEventListener("hashchange", () => {
  window.clearTimeout(timer);
  place.value = parsePlace(location.hash);
});

/** Goes to another place; the browser's back button returns. */
export function go(path: readonly string[], values: Params = {}): void {
  flush();
  location.hash = link(path, values);
}

let timer = 0;

function flush(): void {
  window.clearTimeout(timer);
  timer = 0;
  const address = link(place.value.path, place.value.params);
  if (address !== location.hash) history.replaceState(null, "", address);
}

/**
 * Changes parameters of this place. The page follows at once; the address a moment later, since browsers refuse to change it hundreds of
 * times while a slider moves. `step` makes it one that the back button returns from.
 */
export function set(values: Params, step = false): void {
  const next = { ...place.value.params } as Params;
  Object.assign(next, values);
  const clean = Object.fromEntries(
    Object.entries(next).flatMap(([k, v]) => (v === null || v === undefined || v === "" ? [] : [[k, String(v)]])),
  );
  if (step) {
    flush();
    place.value = { path: place.value.path, params: clean };
    history.pushState(null, "", link(place.value.path, clean));
  } else {
    place.value = { path: place.value.path, params: clean };
    if (!timer) timer = window.setTimeout(flush, 250);
  }
}

window.addEventListener("popstate", () => {
  place.value = parsePlace(location.hash);
});

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
