// Follows a run: asks the server what has changed since the last answer (docs/DASHBOARD.md) and
// keeps the whole picture. A server that is away is asked again, at longer and longer intervals;
// what is known stays on the page meanwhile.

export interface RankColumns {
  tokens: number[];
  compute_s: number[];
  wait_stages_s: number[];
  wait_ranks_s: number[];
}

/** One entry a bucket of `stride` steps; sums over the bucket, but loss and grad_norm are means. */
export interface Columns {
  step: number[];
  time: number[];
  steps: number[];
  tokens: number[];
  step_s: number[];
  wait_line_s: number[];
  reduce_s: number[];
  skipped: number[];
  loss: (number | null)[];
  grad_norm: (number | null)[];
  lr: number[];
  ranks: RankColumns[];
}

export interface RankTotals {
  device: string;
  tokens: number;
  compute_s: number;
  wait_stages_s: number;
  wait_ranks_s: number;
  late_s: number;
  host_busy_s: number;
  peak_memory_bytes: number;
}

export interface SiteSteps {
  site: string;
  stride: number;
  repeated: number;
  totals: {
    steps: number;
    tokens: number;
    step_s: number;
    wait_line_s: number;
    reduce_s: number;
    skipped: number;
    ranks: RankTotals[];
  };
  columns: Columns;
}

export interface Evaluation {
  site: string;
  step: number;
  time: number;
  loss: number | null;
  bits_per_byte: number | null;
}

export interface Commit {
  exchange: number;
  epoch: number;
  members: string[];
  time: number;
  hash?: string;
}

export interface LineUse {
  site: string;
  time: number;
  sent_bytes: number;
}

export type RunEvent = { event: string; time: number; site?: string } & Record<string, unknown>;

export interface PlannedDevice {
  device: string;
  node: string;
  predicted_step_s: number;
  predicted_tokens_s: number;
  predicted_memory: Record<string, number>;
  memory_bytes: number;
  measured: boolean;
}

export interface PlannedStage {
  first_block: number;
  last_block: number;
  ranks: number[];
  recompute?: boolean;
}

export interface PlannedPipeline {
  sequences: number;
  microbatch: number;
  predicted_step_s: number;
  stages: PlannedStage[];
}

export interface Plan {
  job_name: string;
  steps: number;
  batch_sequences: number;
  sequence_length: number;
  num_parameters: number;
  num_blocks: number;
  sites: {
    name: string;
    batch_sequences: number;
    predicted_step_s: number;
    bound_by: string;
    devices: PlannedDevice[];
    pipelines: PlannedPipeline[];
  }[];
  pipelines?: PlannedPipeline[];
  links: { from: string; to: string; bandwidth_mbit_s: number; rtt_ms: number }[];
  exchange: { inner_steps: number; fragments: number; overlap_steps: number; delta_bits: number };
  predicted_tokens_s: number;
  predicted_line_mbit_s: number;
  warnings?: string[];
}

export interface Run {
  epoch: number;
  version: number;
  run: string;
  now: number;
  written: number;
  found: boolean;
  read_bytes: number;
  total_bytes: number;
  has_model: boolean;
  given_up: number;
  unreadable: number;
  plan: Plan | null;
  job: string;
  sites: SiteSteps[];
  evaluations: Evaluation[];
  lines: LineUse[];
  commits: Commit[];
  events: RunEvent[];
}

type Answer = Partial<Omit<Run, 'sites'>> & Pick<Run, 'epoch' | 'version'> & { since: number; sites: (SiteSteps & { from: number })[] };

const kRowsMax = 4000; // as many as the server keeps of each kind

function appended<Row>(old: Row[], more: Row[] | undefined): Row[] {
  if (!more?.length) return old;
  return [...old, ...more].slice(-kRowsMax);
}

function spliced(old: Columns | undefined, more: Columns, from: number): Columns {
  if (!old || from === 0) return more;
  const join = <Item>(a: Item[], b: Item[]) => [...a.slice(0, from), ...b];
  const none: number[] = new Array(from).fill(0);
  return {
    step: join(old.step, more.step),
    time: join(old.time, more.time),
    steps: join(old.steps, more.steps),
    tokens: join(old.tokens, more.tokens),
    step_s: join(old.step_s, more.step_s),
    wait_line_s: join(old.wait_line_s, more.wait_line_s),
    reduce_s: join(old.reduce_s, more.reduce_s),
    skipped: join(old.skipped, more.skipped),
    loss: join(old.loss, more.loss),
    grad_norm: join(old.grad_norm, more.grad_norm),
    lr: join(old.lr, more.lr),
    ranks: more.ranks.map((rank, i) => ({
      tokens: join(old.ranks[i]?.tokens ?? none, rank.tokens),
      compute_s: join(old.ranks[i]?.compute_s ?? none, rank.compute_s),
      wait_stages_s: join(old.ranks[i]?.wait_stages_s ?? none, rank.wait_stages_s),
      wait_ranks_s: join(old.ranks[i]?.wait_ranks_s ?? none, rank.wait_ranks_s),
    })),
  };
}

/** What is known after an answer. Sites come in the plan's order. */
export function merge(before: Run | null, answer: Answer): Run {
  const old = before && before.epoch === answer.epoch && answer.since > 0 ? before : null;
  const plan = answer.plan ?? old?.plan ?? null;
  const sites = answer.sites.map((site) => {
    const known = old?.sites.find((each) => each.site === site.site);
    return { ...site, columns: spliced(known?.columns, site.columns, site.from) };
  });
  const place = (name: string) => {
    const index = plan?.sites.findIndex((site) => site.name === name) ?? -1;
    return index < 0 ? 1e9 : index;
  };
  sites.sort((a, b) => place(a.site) - place(b.site) || (a.site < b.site ? -1 : 1));
  return {
    epoch: answer.epoch,
    version: answer.version,
    run: answer.run ?? '',
    now: answer.now ?? 0,
    written: answer.written ?? 0,
    found: answer.found ?? false,
    read_bytes: answer.read_bytes ?? 0,
    total_bytes: answer.total_bytes ?? 0,
    has_model: answer.has_model ?? false,
    given_up: answer.given_up ?? 0,
    unreadable: answer.unreadable ?? 0,
    plan,
    job: answer.job ?? old?.job ?? '',
    sites,
    evaluations: appended(old?.evaluations ?? [], answer.evaluations),
    lines: appended(old?.lines ?? [], answer.lines),
    commits: appended(old?.commits ?? [], answer.commits),
    events: appended(old?.events ?? [], answer.events),
  };
}

export type Connection = { state: 'connecting' | 'live' } | { state: 'lost'; reason: string; retry_at: number };

const kEvery_ms = 1000;
const kHidden_ms = 10_000;
const kAway_ms = 15_000; // an answer that takes longer will not come

export class Follower {
  private run: Run | null = null;
  private timer = 0;
  private failures = 0;
  private is_over = false;
  private is_asking = false;

  constructor(
    private on_run: (run: Run) => void,
    private on_connection: (connection: Connection) => void,
  ) {}

  start() {
    this.is_over = false;
    document.addEventListener('visibilitychange', this.look);
    this.on_connection({ state: 'connecting' });
    void this.ask();
  }

  stop() {
    this.is_over = true;
    document.removeEventListener('visibilitychange', this.look);
    clearTimeout(this.timer);
  }

  /** Does not wait for the next try. */
  now() {
    clearTimeout(this.timer);
    void this.ask();
  }

  private look = () => {
    if (!document.hidden) this.now();
  };

  private again(after_ms: number) {
    clearTimeout(this.timer);
    if (!this.is_over) this.timer = window.setTimeout(() => void this.ask(), after_ms);
  }

  private async ask() {
    if (this.is_asking || this.is_over) return;
    this.is_asking = true;
    try {
      const query = this.run ? `?epoch=${this.run.epoch}&since=${this.run.version}` : '';
      const response = await fetch(`api/run${query}`, { signal: AbortSignal.timeout(kAway_ms), cache: 'no-store' });
      if (!response.ok) throw new Error(`the server answered ${response.status} ${response.statusText}`);
      this.run = merge(this.run, (await response.json()) as Answer);
      this.failures = 0;
      this.on_connection({ state: 'live' });
      this.on_run(this.run);
      const is_behind = this.run.read_bytes < this.run.total_bytes;
      this.again(is_behind ? 0 : document.hidden ? kHidden_ms : kEvery_ms);
    } catch (error) {
      ++this.failures;
      const wait_ms = Math.min(10_000, 500 * 2 ** this.failures);
      const reason = error instanceof TypeError ? 'the server cannot be reached' : String((error as Error).message ?? error);
      this.on_connection({ state: 'lost', reason, retry_at: Date.now() + wait_ms });
      this.again(wait_ms);
    } finally {
      this.is_asking = false;
    }
  }
}
