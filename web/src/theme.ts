import { computed, effect, signal } from "@preact/signals";

// Colours of pages and plots. Text on every surface has a contrast of at least 4.5 (WCAG AA), marks of 3. Blue and orange for the two
// sides are told apart by any colour vision; the diverging pair of the heat maps is another one, since it is no side.
const light = {
  page: "#f6f6f4",
  panel: "#ffffff",
  sunken: "#efefec",
  line: "#dcdcd7",
  edge: "#8b8f94",
  text: "#1c1e21",
  muted: "#5b6066",
  accent: "#4a3fb5",
  wash: "#ecebfa",
  sft: "#2767ac",
  sftWash: "#e6eff9",
  rl: "#ad4a08",
  rlWash: "#fcede1",
  neither: "#878b91",
  good: "#1f7a3d",
  warning: "#855400",
  warningWash: "#fff4dc",
  bad: "#b3261e",
  badWash: "#fdeceb",
  low: "#762a83",
  high: "#1b7837",
  loss: "#d99a00",
};
export type Palette = Readonly<typeof light>;
const dark: Palette = {
  page: "#131517",
  panel: "#1b1e21",
  sunken: "#24282c",
  line: "#343a3f",
  edge: "#7b8289",
  text: "#e4e6e8",
  muted: "#a0a7ae",
  accent: "#ada5ff",
  wash: "#2a2850",
  sft: "#6cabeb",
  sftWash: "#1a2f45",
  rl: "#f2924c",
  rlWash: "#41291a",
  neither: "#848b92",
  good: "#6cc68a",
  warning: "#e8b959",
  warningWash: "#3a2f16",
  bad: "#ff8f86",
  badWash: "#43211f",
  low: "#c78bd3",
  high: "#6cc68a",
  loss: "#7d5500",
};
export const LIGHT: Palette = light;

export type Choice = "system" | "light" | "dark";
const KEY = "gradprism-studio-theme";
const system = window.matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", () => {
  systemDark.value = system.matches;
});

export const choice = signal<Choice>(stored());
export const isDark = computed(() => (choice.value === "system" ? systemDark.value : choice.value === "dark"));
export const palette = computed<Palette>(() => (isDark.value ? dark : light));

/** Keeps the page's variables at the palette, and remembers the choice. */
export function applyTheme(): void {
  effect(() => {
    const root = document.documentElement;
    for (const [name, colour] of Object.entries(palette.value)) root.style.setProperty(`--${kebab(name)}`, colour);
    root.style.colorScheme = isDark.value ? "dark" : "light";
    try {
      localStorage.setItem(KEY, choice.value);
    } catch {
      // A page opened from disk may have no storage; the choice then lasts as long as the page.
    }
  });
}

function stored(): Choice {
  try {
    const value = localStorage.getItem(KEY);
    if (value === "light" || value === "dark") return value;
  } catch {
    // as above
  }
  return "system";
}

const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
