// What the figures of a run mean: how it stands, how fast, where time goes, what broke and came back.
// Pure functions of what the feed holds; the panels draw their results.

import { duration, percent, short, significant } from '../shared/format';
import type { Plan, Run, RunEvent, SiteSteps } from './feed';

export type Standing = 'absent' | 'starting' | 'training' | 'silent' | 'stopping' | 'stopped' | 'finished' | 'failed';

export interface Status {
  standing: Standing;
  words: string;
  detail: string;
}

const kBegins = new Set(['started', 'resumed', 'run_starting', 'run_started', 'coordinator_restarted']);
const kRecent = 8; // buckets; a rate over fewer jumps, over more lags

function last<Row>(rows: Row[]): Row | undefined {
  return rows[rows.length - 1];
}

function sum(values: number[], from = 0): number {
  let total = 0;
  for (let i = Math.max(0, from); i < values.length; ++i) total += values[i];
  return total;
}

export function completedSteps(run: Run): number {
  if (run.sites.length === 0) return 0;
  return Math.min(...run.sites.map((site) => last(site.columns.step) ?? 0));
}

/** Seconds a step, over the last buckets. */
export function recentStep_s(site: SiteSteps): number {
  const from = site.columns.steps.length - kRecent;
  return sum(site.columns.step_s, from) / sum(site.columns.steps, from);
}

export function recentTokens_s(site: SiteSteps): number {
  const from = site.columns.steps.length - kRecent;
  return sum(site.columns.tokens, from) / sum(site.columns.step_s, from);
}

export function tokens_s(run: Run): number {
  return run.sites.reduce((all, site) => all + (site.totals.step_s > 0 ? site.totals.tokens / site.totals.step_s : 0), 0);
}

/** What the devices would reach together if each trained alone at its share. */
export function partsTokens_s(plan: Plan): number {
  return plan.sites.reduce((all, site) => all + site.devices.reduce((each, device) => each + device.predicted_tokens_s, 0), 0);
}

export function eta_s(run: Run): number {
  if (!run.plan || run.sites.length === 0) return NaN;
  const steps = run.plan.steps;
  return Math.max(...run.sites.map((site) => (steps - (last(site.columns.step) ?? 0)) * recentStep_s(site)));
}

export function status(run: Run): Status {
  if (!run.found && run.sites.length === 0 && run.events.length === 0) {
    return { standing: 'absent', words: 'No run here yet', detail: `${run.run} holds no plan.json.` };
  }
  let ended: RunEvent | null = null;
  let stopping = false;
  for (const event of run.events) {
    if (kBegins.has(event.event)) {
      ended = null;
      stopping = false;
    } else if (event.event === 'stopping' || event.event === 'stop_requested') {
      stopping = true;
    } else if (['finished', 'stopped', 'run_over', 'failed', 'summary'].includes(event.event)) {
      // The summary ends the file of a run that said before how it ended.
      if (event.event !== 'summary' || ended === null) ended = event;
    }
  }
  const done = completedSteps(run);
  const steps = run.plan?.steps ?? 0;
  if (ended) {
    if (ended.event === 'failed') {
      return { standing: 'failed', words: 'Failed', detail: String(ended.message ?? 'See the events below.') };
    }
    if (ended.event === 'stopped' || (steps > 0 && done < steps)) {
      return { standing: 'stopped', words: 'Stopped', detail: `At step ${done} of ${steps}; --resume goes on.` };
    }
    return { standing: 'finished', words: 'Finished', detail: run.has_model ? 'The model is exported.' : 'All steps are done.' };
  }
  if (stopping) return { standing: 'stopping', words: 'Stopping', detail: 'A checkpoint comes first.' };
  const quiet_s = run.now - run.written;
  const patience_s = Math.max(60, 8 * Math.max(0, ...run.sites.map((site) => recentStep_s(site) || 0)));
  if (run.written > 0 && quiet_s > patience_s) {
    return { standing: 'silent', words: 'No sign of life', detail: `Nothing was written for ${duration(quiet_s)}: killed, paused, or its disk is away.` };
  }
  if (done === 0) return { standing: 'starting', words: 'Starting', detail: 'Workers load weights and compile.' };
  return { standing: 'training', words: 'Training', detail: '' };
}

export type Health = 'good' | 'slow' | 'lost' | 'unknown';

export interface Chip {
  site: string;
  site_idx: number;
  rank: number;
  device: string;
  name: string;
  is_emulated: boolean;
  health: Health;
  why: string;
  tokens: number;
  tokens_s: number;
  recent_tokens_s: number;
  alone_tokens_s: number;
  busy: number;
  late: number;
  peak_bytes: number;
  predicted_bytes: number;
  predicted_memory: Record<string, number>;
  memory_bytes: number;
  measured: boolean;
}

/** "A100 80G" of "emulated:nvidia-a100-80g-sxm"; what it is not sure of it leaves as it is. */
export function chipName(device: string): string {
  const id = device.slice(device.indexOf(':') + 1);
  if (!device.startsWith('emulated:')) return device;
  const words = id.split('-').slice(1).filter((word) => !['sxm', 'pcie', 'oam'].includes(word));
  return words.length ? words.map((word) => word.toUpperCase()).join(' ') : id;
}

/** What an event says of devices and sites that are away: the newest word counts. */
function losses(run: Run): Map<string, string> {
  const away = new Map<string, string>();
  for (const event of run.events) {
    const key = `${event.site}/${event.rank}`;
    const reason = String(event.why ?? event.reason ?? event.message ?? event.event.replaceAll('_', ' '));
    if (event.event === 'device_lost') away.set(key, reason);
    if (event.event === 'device_returned') away.delete(key);
    if (event.event === 'site_lost' || event.event === 'site_expelled') away.set(`${event.site}`, reason);
    if (event.event === 'site_returned' || event.event === 'site_joined') away.delete(`${event.site}`);
    if (event.event === 'started' || event.event === 'run_starting' || event.event === 'resumed') away.clear();
  }
  return away;
}

/** Tokens of a step that pass through a device: those of its pipeline. */
function plannedTokens(plan: Plan, site_idx: number, rank: number): number {
  const joint = plan.pipelines ?? [];
  const offset = joint.length ? plan.sites.slice(0, site_idx).reduce((all, site) => all + site.devices.length, 0) : 0;
  const pipelines = joint.length ? joint : (plan.sites[site_idx].pipelines ?? []);
  const own = pipelines.find((pipeline) => pipeline.stages.some((stage) => stage.ranks.includes(rank + offset)));
  return own ? own.sequences * plan.sequence_length : NaN;
}

export function chips(run: Run, standing: Standing): Chip[] {
  const away = losses(run);
  const list: Chip[] = [];
  run.plan?.sites.forEach((planned, site_idx) => {
    const steps = run.sites.find((site) => site.site === planned.name);
    planned.devices.forEach((device, rank) => {
      const totals = steps?.totals.ranks[rank];
      const columns = steps?.columns;
      const from = (columns?.steps.length ?? 0) - kRecent;
      const recent_s = columns ? sum(columns.step_s, from) : 0;
      const step_s = steps?.totals.step_s ?? 0;
      // By token, since a chip that takes another's share computes longer and is not slow.
      const planned_tokens = plannedTokens(run.plan!, site_idx, rank);
      const recent_tokens = columns?.ranks[rank] ? sum(columns.ranks[rank].tokens, from) : 0;
      const recent_compute_s = columns?.ranks[rank] ? sum(columns.ranks[rank].compute_s, from) : NaN;
      const reason = away.get(planned.name) ?? away.get(`${planned.name}/${rank}`);
      let health: Health = totals ? 'good' : 'unknown';
      let why = totals ? 'keeps the pace of the plan' : 'no step reported yet';
      const pace = recent_compute_s / recent_tokens / (device.predicted_step_s / planned_tokens);
      if (reason !== undefined) {
        health = 'lost';
        why = reason;
      } else if (totals && standing === 'training' && pace > 1.25) {
        health = 'slow';
        why = `computes ${significant(pace, 2)} times as long as planned`;
      } else if (totals && totals.late_s > 0.05 * step_s) {
        health = 'slow';
        why = `this host falls behind the emulated chip for ${percent(totals.late_s / step_s)} of the time`;
      }
      list.push({
        site: planned.name,
        site_idx,
        rank,
        device: device.device,
        name: chipName(device.device),
        is_emulated: device.device.startsWith('emulated:'),
        health,
        why,
        tokens: totals?.tokens ?? 0,
        tokens_s: totals && step_s > 0 ? totals.tokens / step_s : NaN,
        recent_tokens_s: columns?.ranks[rank] && recent_s > 0 ? sum(columns.ranks[rank].tokens, from) / recent_s : NaN,
        alone_tokens_s: device.predicted_tokens_s,
        busy: totals && step_s > 0 ? Math.min(1, totals.compute_s / step_s) : NaN,
        late: totals && step_s > 0 ? totals.late_s / step_s : NaN,
        peak_bytes: totals?.peak_memory_bytes ?? NaN,
        predicted_bytes: sum(Object.values(device.predicted_memory ?? {})),
        predicted_memory: device.predicted_memory ?? {},
        memory_bytes: device.memory_bytes,
        measured: device.measured,
      });
    });
  });
  return list;
}

export interface StepParts {
  label: string;
  site: string;
  step_s: number;
  parts: { name: PartName; seconds: number }[];
}

export const kParts = {
  compute: 'computing',
  stages: 'waiting for other stages',
  ranks: 'reducing, waiting for other chips',
  line: 'waiting for the line',
  rest: 'the rest',
} as const;
export type PartName = keyof typeof kParts;

/** Where a mean step's time goes, by chip; over the last buckets or the whole run. */
export function stepParts(run: Run, recent: boolean): StepParts[] {
  const rows: StepParts[] = [];
  for (const site of run.sites) {
    const from = recent ? site.columns.steps.length - kRecent : 0;
    const num_steps = sum(site.columns.steps, from);
    if (num_steps === 0) continue;
    const step_s = sum(site.columns.step_s, from) / num_steps;
    const line_s = sum(site.columns.wait_line_s, from) / num_steps;
    site.columns.ranks.forEach((rank, i) => {
      const compute_s = sum(rank.compute_s, from) / num_steps;
      const stages_s = sum(rank.wait_stages_s, from) / num_steps;
      const ranks_s = sum(rank.wait_ranks_s, from) / num_steps;
      // A rank tells of the update and the waiting of the step before, so parts may exceed the whole.
      const known_s = compute_s + stages_s + ranks_s + line_s;
      const scale = known_s > step_s ? step_s / known_s : 1;
      rows.push({
        label: chipName(site.totals.ranks[i]?.device ?? `rank ${i}`),
        site: site.site,
        step_s,
        parts: [
          { name: 'compute', seconds: compute_s * scale },
          { name: 'stages', seconds: stages_s * scale },
          { name: 'ranks', seconds: ranks_s * scale },
          { name: 'line', seconds: line_s * scale },
          { name: 'rest', seconds: Math.max(0, step_s - known_s * scale) },
        ],
      });
    });
  }
  return rows;
}

export type Tone = 'info' | 'good' | 'warn' | 'bad';

const kTones: Record<string, Tone> = {
  failed: 'bad',
  site_failed: 'bad',
  site_lost: 'bad',
  site_expelled: 'bad',
  device_lost: 'bad',
  commit_lost: 'bad',
  hash_differs: 'bad',
  site_refused: 'bad',
  donor_refused: 'bad',
  restarting_together: 'bad',
  checkpoint_copy_failed: 'warn',
  warning: 'warn',
  step_skipped: 'warn',
  site_left_out: 'warn',
  exchange_redone: 'warn',
  site_behind: 'warn',
  site_astray: 'warn',
  site_suspect: 'warn',
  site_restarted: 'warn',
  coordinator_restarted: 'warn',
  messages_refused: 'warn',
  stopping: 'warn',
  stop_requested: 'warn',
  finished: 'good',
  run_over: 'good',
  recovered: 'good',
  rejoined: 'good',
  device_returned: 'good',
  site_returned: 'good',
  site_cleared: 'good',
  caught_up: 'good',
};

export function tone(event: RunEvent): Tone {
  return kTones[event.event] ?? 'info';
}

/** An event as a sentence for people; the fields it does not use follow as they are. */
export function sentence(event: RunEvent): string {
  const name = event.event.replaceAll('_', ' ');
  if (event.event === 'summary') return 'the run has written its account';
  const rest = Object.entries(event)
    .filter(([key]) => !['event', 'time', 'site'].includes(key))
    .map(([key, value]) => {
      const words = key.replaceAll('_', ' ');
      if (typeof value === 'number') return key.endsWith('_s') || key.startsWith('seconds') ? `${words.replace(/ s$/, '')} ${duration(value)}` : `${words} ${Number.isInteger(value) ? value : short(value)}`;
      if (typeof value === 'string') return value === '' ? '' : ['message', 'reason', 'why', 'words'].includes(key) ? value : `${words} ${value}`;
      return `${words} ${JSON.stringify(value)}`;
    })
    .filter((words) => words !== '');
  return rest.length ? `${name}: ${rest.join(', ')}` : name;
}

export interface Span {
  site: string;
  begin: number;
  end: number;
  is_open: boolean;
  words: string;
}

/** Times in which a device or a site was away, from its loss to its return. */
export function faults(run: Run): Span[] {
  const open = new Map<string, Span>();
  const spans: Span[] = [];
  const close = (key: string, time: number) => {
    const span = open.get(key);
    if (!span) return;
    span.end = time;
    span.is_open = false;
    open.delete(key);
  };
  const begin = (key: string, event: RunEvent, words: string) => {
    if (open.has(key)) return;
    const span = { site: event.site ?? '', begin: event.time, end: Math.max(event.time, run.now), is_open: true, words };
    open.set(key, span);
    spans.push(span);
  };
  for (const event of run.events) {
    const device = `${event.site}/${event.rank}`;
    if (event.event === 'device_lost') begin(device, event, `${chipName(String(event.device ?? ''))} lost: ${event.why ?? ''}`);
    if (event.event === 'device_returned') close(device, event.time);
    if (event.event === 'site_lost') begin(`${event.site}`, event, `${event.site} lost: ${event.reason ?? ''}`);
    if (event.event === 'site_returned' || event.event === 'site_joined') close(`${event.site}`, event.time);
    if (['finished', 'run_over', 'failed', 'stopped', 'summary'].includes(event.event)) {
      for (const key of [...open.keys()]) if (!key.includes('/') || key.startsWith(`${event.site}/`) || !event.site) close(key, event.time);
    }
  }
  return spans;
}

/** Bits a second that each site sends, from its byte counter; by site, in time order. */
export function lineRates(run: Run): Map<string, { time: number[]; mbit_s: number[]; sent_bytes: number }> {
  const rates = new Map<string, { time: number[]; mbit_s: number[]; sent_bytes: number }>();
  const before = new Map<string, { time: number; sent_bytes: number }>();
  for (const use of run.lines) {
    const rate = rates.get(use.site) ?? { time: [], mbit_s: [], sent_bytes: 0 };
    const old = before.get(use.site);
    // A counter that fell belongs to a new start of the site.
    if (old && use.time > old.time && use.sent_bytes >= old.sent_bytes) {
      rate.time.push(use.time);
      rate.mbit_s.push((8e-6 * (use.sent_bytes - old.sent_bytes)) / (use.time - old.time));
      rate.sent_bytes += use.sent_bytes - old.sent_bytes;
    } else {
      rate.sent_bytes += use.sent_bytes;
    }
    before.set(use.site, use);
    rates.set(use.site, rate);
  }
  return rates;
}
