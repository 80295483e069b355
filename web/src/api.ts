/**
 * What the studio's server answers, and what an exported bundle holds: the one contract between both sides.
 *
 * A resource has a path (below, each `Paths` entry) and bytes. The server gives them under `/api/`; a bundle holds the same bytes under the
 * same path, so that a page asks one `Source` and knows no difference but `live`. Resources end in `.json`, or in `.bin`: columns, see
 * `ColumnsHeader`. Numbers that are not finite are `null` in JSON and NaN in columns.
 */

export const API = 1;

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** Of a folder: letters and digits that say nothing of its path. */
export type Id = string;

/** `message`: one line that names file, line or id and what is wrong; `hint`: what to do. */
export interface Problem {
  message: string;
  hint: string;
}

/**
 * The body of every answer that is not 2xx. 403: wrong token, host or origin. 404: no such resource. 409: the folder has changed since
 * `?v=` (load its `meta` again). 422: it cannot be read (torn, of another version) or the request cannot be done.
 */
export interface Failure {
  error: Problem;
}

/**
 * Where resources come from. `json` and `bytes` take a path of `paths` with or without a query; both reject with a `Failure`'s `Problem`.
 * `live` is true of the server, where folders change and routes can be overridden, and false of a bundle.
 */
export interface Source {
  readonly live: boolean;
  json<T>(path: string): Promise<T>;
  bytes(path: string): Promise<ArrayBuffer>;
  post<T>(path: string, body: Json): Promise<T>;
}

/**
 * All resources. `v` is the version that `meta` told; with it the server answers 409 once the folder is another. A bundle has no queries:
 * its source cuts them off, and `trajectory`, `tokens` and `episode`, `search`, `distances` and `audit` are as said beside them.
 */
export const paths = {
  /** `Index`. */
  index: () => "index.json",
  /** `CorpusMeta`. */
  corpus: (id: Id) => `corpus/${id}/meta.json`,
  /** Columns that a first picture needs: ids, counts, loss, categories, and the first metric. */
  columns: (id: Id, v: string) => `corpus/${id}/columns.bin?v=${v}`,
  /** All other columns: further metrics, scaled norms' metrics, statistics of turns. */
  more: (id: Id, v: string) => `corpus/${id}/more.bin?v=${v}`,
  /** One text column `preview`, `[n]`: the beginning of each trajectory's first user turn, at most 160 characters. */
  previews: (id: Id, v: string) => `corpus/${id}/previews.bin?v=${v}`,
  /** `Profiles`. */
  profile: (id: Id, v: string) => `corpus/${id}/profile.json?v=${v}`,
  /** Columns of a route, in the order of the corpus's rows: see `RouteMeta`. */
  route: (id: Id, route: Id, v: string) => `corpus/${id}/routes/${route}.bin?v=${v}`,
  /** `Trajectory`. In a bundle: `block(trajectoryBlock(id, k))`, of which it is an entry. */
  trajectory: (id: Id, row: number, v: string) => `corpus/${id}/trajectory/${row}.json?v=${v}`,
  /** `Tokens`. In a bundle: `tokenBlock(id, k)`, where `CorpusMeta.tokens` is true. */
  tokens: (id: Id, row: number, v: string) => `corpus/${id}/tokens/${row}.json?v=${v}`,
  /**
   * One f32 column `distance`, `[n]`: of each trajectory's profile to that of `row` (see `Profiles`). In a bundle: computed
   * from `profiles`.
   */
  distances: (id: Id, row: number, v: string) => `corpus/${id}/distances/${row}.bin?v=${v}`,
  /** Bundle only: one f32 column `profile`, `[n * N]`, row by row: standardised, so that distances are Euclidean. */
  profiles: (id: Id) => `corpus/${id}/profiles.bin`,
  /** One u32 column `row`: trajectories with `q` in any text, whatever its case. In a bundle: go through the blocks. */
  search: (id: Id, q: string, v: string) => `corpus/${id}/search.bin?q=${encodeURIComponent(q)}&v=${v}`,
  /** `Audit` of a cut. In a bundle: `corpus/ID/audit.json`, `Record<column, Audit>`, each at its median. */
  audit: (id: Id, column: string, threshold: number, v: string) =>
    `corpus/${id}/audit.json?column=${encodeURIComponent(column)}&threshold=${threshold}&v=${v}`,
  /** POST an `Override`; answers with the route's new `RouteMeta` (and its columns are to be loaded again). */
  override: (id: Id, route: Id) => `corpus/${id}/routes/${route}/override`,
  /** `RunView`: of a run folder, and of one that a single training or evaluation wrote. */
  run: (id: Id) => `run/${id}.json`,
  /** `Log`: every line of a training's log. */
  log: (id: Id, training: Id) => `run/${id}/log/${training}.json`,
  /** `ResultsView`: of every folder that holds a `results.json`, a run's too. */
  results: (id: Id) => `results/${id}.json`,
  /** `EpisodeList`. */
  episodes: (id: Id, evaluation: Id) => `run/${id}/episodes/${evaluation}.json`,
  /** `Episode`. In a bundle: `episodeBlock(id, evaluation, k)`. */
  episode: (id: Id, evaluation: Id, n: number) => `run/${id}/episodes/${evaluation}/${n}.json`,
};

/** Bundle only: JSON lists of `BLOCK` entries; entry i of block k is row `k * BLOCK + i`. */
export const BLOCK = 64;
export const trajectoryBlock = (id: Id, k: number) => `corpus/${id}/trajectories/${k}.json`;
export const tokenBlock = (id: Id, k: number) => `corpus/${id}/tokens/${k}.json`;
export const episodeBlock = (id: Id, evaluation: Id, k: number) => `run/${id}/episodes/${evaluation}/blocks/${k}.json`;

/**
 * A bundle in one file: for each resource an element
 * `<script type="application/octet-stream" data-path="corpus/…/columns.bin">BASE64 OF GZIP</script>` after the page's own. In a folder: `data.js`
 * defines `globalThis.gradprismFiles = {path: "data/12.js", …}`, and a file `data/12.js` calls `gradprismData("path", "BASE64 OF GZIP")`
 * when a `<script src>` that the source adds has loaded it (files that are opened from a disk may not be fetched). The page finds out by
 * `<meta name="gradprism-source" content="server | file | folder">`.
 */
export type SourceKind = "server" | "file" | "folder";

// --- columns

export type Dtype = "f64" | "f32" | "u32" | "i32" | "u16" | "u8";

/**
 * A numeric array; or codes of a category, an index into `values`, which is null for the largest code that the type holds (255, 65535);
 * or text: UTF-8 bytes, with `offsets` (u32, `[length + 1]`) where each begins and ends.
 */
export interface Column {
  name: string;
  label: string;
  /** `metric`: a score by which a corpus may be cut; `measure`: any other number; `category`; `text`. */
  kind: "metric" | "measure" | "category" | "text";
  dtype: Dtype;
  /** Entries; of a text column, texts. */
  length: number;
  /** Bytes from the body's beginning to the array, a multiple of 8; of a text column, to the UTF-8 bytes. */
  start: number;
  /** Of the array in bytes. */
  size: number;
  values?: string[];
  offsets?: { start: number; size: number };
  /** What it is, in a sentence, with its unit. */
  help?: string;
}

/**
 * A `.bin`: u32 length of the header in bytes, the header as JSON padded with blanks so that the body begins at a multiple of 8, the body.
 * Everything is little-endian.
 */
export interface ColumnsHeader {
  version: string;
  n: number;
  columns: Column[];
}

// --- the folders

export type Kind = "probe" | "route" | "run" | "results" | "training" | "evaluation";

export interface Index {
  api: number;
  /** Of gradprism. */
  version: string;
  /** The folders that were named, as they were named. */
  roots: string[];
  entries: Entry[];
  /** What was to be read and could not: also folders left out because a link leads out of the roots. */
  problems: Problem[];
}

/** A folder that was found. `corpus`, `run` and `results` say which pages it has: ids for `paths.corpus`, `paths.run`, `paths.results`. */
export interface Entry {
  id: Id;
  kind: Kind;
  /** Below its root, for a person. */
  name: string;
  /** As a command line takes it, from where the server was started. */
  path: string;
  /** Seconds since 1970; a page that shows a folder asks again when it changes. */
  modified: number;
  version: string;
  /** Being written at this moment by a command. */
  running: boolean;
  /** In a few words: model, numbers. */
  summary: string;
  problem: Problem | null;
  corpus: Id | null;
  run: Id | null;
  results: Id | null;
  /** Of a stage within a run: the run. */
  parent: Id | null;
}

// --- a corpus: a probe with its routes, or a route whose probe is not there

export interface Unit {
  name: string;
  layer: number;
  /** The projection, such as `gate`. */
  matrix: string;
  n_parameters: number;
}

export interface CorpusMeta {
  id: Id;
  version: string;
  name: string;
  path: string;
  /** Trajectories. */
  n: number;
  /** Response tokens, all tokens. */
  n_response_tokens: number;
  n_tokens: number;
  /** What was probed and how, for comparing two: model, dtype, weights_sha256, template_sha256, corpus_sha256, context_length, … */
  manifest: Record<string, Json>;
  /** Empty where there are no norms (a route without its probe). */
  units: Unit[];
  /** Names of the columns of scores by which a corpus may be cut, of norms as they are and of the probe's pass; the default first. */
  metrics: string[];
  /** Whether single turns were probed. */
  per_turn: boolean;
  /** Whether `tokens` can be had, and losses of single tokens with them; else why not. */
  tokens: boolean;
  losses: boolean;
  tokens_hint: string;
  routes: RouteMeta[];
  costs: Costs;
  /** What can be said of the corpus by itself: cut, unknown tokens, an unfinished probe, … */
  warnings: string[];
}

/**
 * A trajectory's profile: its norms over their sum, times N, so that 1 is the share of a matrix where all are alike. `mean` and `std` are the
 * corpus's, `[N]`; distances are Euclidean between profiles less `mean` and over `std` (a matrix whose `std` is 0 counts for nothing).
 */
export interface Profiles {
  mean: number[];
  std: number[];
}

export type Side = "sft" | "none" | "rl" | "both";

/**
 * A route folder of this corpus. Columns of `paths.route`: `score` (f64; the policy's, which is cut), `side` (category of `sft`, `none`,
 * `rl`, `both`: where each goes), `cut` (the same without overrides), `reason` (text; empty where there is no override), and `pass_rate` or
 * statistics of turns where it has them.
 */
export interface RouteMeta {
  id: Id;
  name: string;
  path: string;
  version: string;
  policy: string;
  metric: string;
  normalise: string;
  threshold: number;
  threshold_rule: "median" | "quantile" | "fixed" | "cuts" | "shares" | "weights";
  /** Numbers at which scores are cut, ascending, and the side of each range, one more; a score belongs above where it is greater. */
  cuts: number[];
  sides: Side[];
  /** Strata in which scores were ranked, `length` or `task_type`; scores are then fractions of their stratum. */
  within: string[];
  /** By rule: the share of a `quantile`, those of `shares`; null or empty of others. */
  rl_share: number | null;
  shares: number[];
  /** Of rule `weights`, in place of sides: SFT's loss and RL's draws by the score's rank (columns `sft_weight` and `rl_weight`). */
  weights: "linear" | "logistic" | null;
  temperature: number | null;
  /** That of the scores in which both sets are written; null for the corpus's. */
  order: "ascending" | "descending" | null;
  seed: number;
  /** Files that it was made with beside the probe, of which it knows no path. */
  asks_for: ("pass_rates" | "target")[];
  per_turn: boolean;
  /** Those of both sides are among `n_sft` and `n_rl` too. */
  n_sft: number;
  n_none: number;
  n_rl: number;
  n_both: number;
  n_overrides: number;
  /** Null where it may be overridden here; else why not. */
  read_only: Problem | null;
  warnings: string[];
  audit: Audit | null;
}

/** Sends trajectories to a side, or with `side` null takes their overrides back. */
export interface Override {
  rows: number[];
  side: Side | null;
  /** Must say something, unless `side` is null. */
  reason: string;
  /** Of the route, as its `RouteMeta` told. */
  version: string;
}

/** What a cut costs: hours of RL = (`seconds_per_task` × tasks + `seconds_per_token` × their tokens) / 3600; null where not known. */
export interface Costs {
  rl: Rate | null;
  sft: Rate | null;
  probe_seconds: number | null;
}

export interface Rate {
  seconds_per_task: number;
  seconds_per_token: number;
  /** Where it is from: a run's ledger, or `--device-tflops`. */
  source: string;
}

/** `str` of the audit is `text`; figures as `gradprism audit` gives them. */
export interface Audit {
  column: string;
  threshold: number;
  warnings: string[];
  notes: string[];
  spearman: Record<string, number | null>;
  split_by: Record<string, { rl: "high" | "low"; same_side: number; jaccard: number | null }>;
  task_type_eta_squared: number | null;
  threshold_standard_error: number | null;
  share_within_one_standard_error: number | null;
  agreement: Record<string, { spearman: number | null; same_side: number; jaccard: number | null }>;
}

// --- a trajectory

export interface ToolCall {
  id: string;
  name: string;
  arguments: Json;
}

export interface Message {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  reasoning: string;
  tool_calls: ToolCall[];
  /** Of a tool's result. */
  name: string;
  tool_call_id: string;
  /** Of an assistant turn in the loss; 0 for one that is not trained on. */
  weight: number;
  /** Of an assistant turn, from 0; null of others. */
  turn: number | null;
}

/** An assistant turn by itself, where single turns were probed. */
export interface TurnScore {
  turn: number;
  loss: number;
  n_response_tokens: number;
  /** By metric; null where undefined. */
  scores: Record<string, number | null>;
}

export interface Trajectory {
  row: number;
  id: string;
  /** By which an environment sets the task up; empty where the corpus names none. */
  task: Record<string, Json>;
  tools: Json[];
  messages: Message[];
  /** Empty where turns were not probed. */
  turns: TurnScore[];
  /** Gradient norms `[N]`, in the order of `CorpusMeta.units`, of which `Profiles` are made. Empty without a probe. */
  norms: number[];
  /** Set where the text is not all here: of a route without its probe, RL's side has prompts only. */
  note: string;
}

/** As the model reads it. */
export interface Tokens {
  row: number;
  /** All text, the chat template's marks included; token i has `lengths[i]` UTF-16 units of it. */
  text: string;
  lengths: number[];
  /** Runs of tokens: those counted as response. Half-open, in tokens. */
  response: [number, number][];
  /** Nats of each token, null where it is not in the loss; empty where the probe kept none. */
  losses: (number | null)[];
  /** Tokens that the context length cut off. */
  truncated: number;
}

// --- runs

export interface RunView {
  id: Id;
  version: string;
  name: string;
  path: string;
  state: "running" | "finished" | "unfinished";
  /** Done and running, in the order in which they began. */
  stages: Stage[];
  trainings: Training[];
  evaluations: Evaluation[];
  /** Ids of corpora among the stages. */
  corpora: { id: Id; name: string }[];
  /** Where there is a `results.json`. */
  results: Id | null;
  /** As it was resolved, TOML-like; null where there is none. */
  config: Json;
  /** Warnings of all stages. */
  warnings: string[];
}

export interface Stage {
  name: string;
  kind: string;
  state: "done" | "running" | "stopped";
  /** ISO 8601. */
  started: string | null;
  headline: string;
  /** Of a running one; null where not known. */
  progress: { done: number; total: number | null; unit: string } | null;
  wall_seconds: number | null;
  cpu_seconds: number | null;
  gpu_seconds: number | null;
  flops: number | null;
  tokens_forward: number | null;
  tokens_backward: number | null;
  tokens_generated: number | null;
  environment_steps: number | null;
  peak_memory_mib: number | null;
  peak_gpu_memory_mib: number | null;
}

export interface Training {
  id: Id;
  /** Its stage, or folder. */
  name: string;
  kind: "sft" | "rl";
  steps: number;
  total_steps: number | null;
  /** Alarms as of the last round, and the first round that each was raised in. */
  alarms: { name: string; what: string; remedy: string; round: number }[];
  warnings: string[];
  /** Figures that the log has, those that the doctor reads first. */
  figures: string[];
}

/** A column per figure, null in steps that do not tell it; `step` among them. */
export interface Log {
  version: string;
  columns: Record<string, (number | null)[]>;
}

export interface SuccessRow {
  split: string;
  /** `all` for all together. */
  task_type: string;
  tasks: number;
  episodes: number;
  success: number;
  low: number;
  high: number;
  score: number;
  score_low: number;
  score_high: number;
  mean_steps: number;
  invalid_share: number;
  failures: number;
  cut_by_context: number;
  out_of_steps: number;
}

export interface Evaluation {
  id: Id;
  name: string;
  /** Of the model that plays: its stage, `base`, `expert`, … */
  agent: string;
  rows: SuccessRow[];
  episodes: number;
  total: number | null;
  remarks: string[];
}

export interface EpisodeList {
  version: string;
  n: number;
  columns: {
    id: string[];
    task_type: (string | null)[];
    split: string[];
    success: boolean[];
    score: number[];
    reward: number[];
    steps: number[];
    invalid: number[];
    tokens: number[];
    stop_reason: string[];
  };
}

export interface Episode {
  n: number;
  id: string;
  task_type: string | null;
  split: string;
  success: boolean;
  score: number;
  reward: number;
  stop_reason: string;
  failure: string;
  steps: { observation: string; action: string; valid: boolean; reward: number }[];
  /** The last observation, which no action answers. */
  observation: string;
  /** Numbers of the environment's own account of the end: the reward's parts. */
  parts: Record<string, number>;
  /** All of that account. */
  details: Record<string, Json>;
}

// --- results

export interface Interval {
  mean: number;
  low: number;
  high: number;
}

export interface ResultsView {
  id: Id;
  version: string;
  name: string;
  path: string;
  environment: string;
  created: string | null;
  model: { id: string; parameters: number | null } | null;
  trajectories: number | null;
  seeds: number[];
  /** The main one first. */
  splits: string[];
  /** With one seed intervals are over tasks only. */
  is_run: boolean;
  arms: ArmView[];
  /** By split, in the order of the outcomes. */
  tasks: Record<string, { id: string; task_type: string | null }[]>;
  claims: ClaimView[];
  sweeps: { title: string; points: { value: string; arm: string }[] }[];
  /** Of the probe: mean norms by layer and kind of matrix. */
  heat_map: { layers: number[]; kinds: string[]; mean_norms: (number | null)[][] } | null;
  /** Scores' histograms by route. */
  routes: Record<string, RouteHistogram>;
  /** What `gradprism report` prints: every table of the results, as it goes into `tables.md`, without its figures. */
  document: Block[];
}

export interface RouteHistogram {
  metric: string;
  policy: string;
  threshold: number;
  start: number;
  width: number;
  sft: number[];
  rl: number[];
  /** To SFT, to RL. */
  task_types: Record<string, number[]>;
}

export interface ArmView {
  name: string;
  title: string;
  group: string;
  /** Those done. */
  seeds: number[];
  n_sft: number | null;
  n_rl: number | null;
  /** Fractions, by split; absent where it was not played. */
  success: Record<string, Interval>;
  score: Record<string, Interval>;
  /** To the first reference arm, by split. */
  difference: Record<string, Interval & { p: number | null }>;
  /** One character a task, `0` or `1`, by split and seed. */
  outcomes: Record<string, { seed: number; success: string }[]>;
  /** Means over seeds; null where it trains nothing. */
  cost: ArmCost | null;
  /** Success on the way: the cost so far, of CPU seconds, wall seconds and FLOPs. */
  curve: {
    stage: string;
    fraction: number;
    success: number;
    wall_seconds: number;
    cpu_seconds: number;
    flops: number;
  }[];
}

export interface ArmCost {
  wall_seconds: number;
  cpu_seconds: number;
  gpu_seconds: number;
  flops: number;
  /** The part that is not training: probing, routing, sampling. */
  choosing_wall_seconds: number;
  peak_memory_mib: number;
  /** Over full RL; null where there is none. */
  speedup_wall: number | null;
  speedup_flops: number | null;
}

export interface ClaimView {
  text: string;
  better: string;
  worse: string;
  /** Fractions; null where an arm has no run yet. */
  difference: Interval | null;
  p: number | null;
  /** As the table of claims says it. */
  verdict: string;
}

/** `code`, **strong** and *emphasis* in `paragraph` and `table` cells are marked up as in Markdown; everything else is text. */
export type Block =
  | { type: "heading"; text: string; level: number }
  | { type: "paragraph"; text: string }
  | { type: "list"; items: string[] }
  | { type: "table"; headings: string[]; rows: string[][]; names: number };
