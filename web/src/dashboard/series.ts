// Columns of the feed as tables that a chart takes: one x axis for all sites, smoothed where raw
// values jump.

import uPlot from 'uplot';
import type { Run, SiteSteps } from './feed';

export type Table = (number | null | undefined)[][];
export type XAxis = 'step' | 'time';

export function xOf(site: SiteSteps, axis: XAxis): number[] {
  return axis === 'step' ? site.columns.step : site.columns.time;
}

/** An exponential mean that starts unbiased (Adam's correction), so that the first values count fully. */
export function smooth(values: (number | null)[], keep: number): (number | null)[] {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null || !Number.isFinite(value)) return null;
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

/** Tables with their own x become one; where a table has no value for an x there is a gap. */
export function join(tables: Table[]): Table {
  const full = tables.filter((table) => table[0].length > 0);
  if (full.length === 0) return tables.length ? [[], ...tables.flatMap((table) => table.slice(1).map(() => []))] : [[]];
  // uPlot wants x in order without repeats; a run that went back in time has neither.
  const sorted = tables.map((table) => {
    const order = table[0].map((x, i) => [x as number, i] as const).sort((a, b) => a[0] - b[0]);
    const kept = order.filter(([x], k) => k === 0 || x !== order[k - 1][0]);
    return table.map((column) => kept.map(([, i]) => column[i]));
  });
  return uPlot.join(sorted as uPlot.AlignedData[]) as Table;
}

export function lossTable(run: Run, axis: XAxis, keep: number): Table {
  const tables: Table[] = run.sites.map((site) => [xOf(site, axis), site.columns.loss, smooth(site.columns.loss, keep)]);
  const heldOut = globalEvaluations(run);
  tables.push([heldOut.map((each) => (axis === 'step' ? each.step : each.time)), heldOut.map((each) => each.loss)]);
  return join(tables);
}

/** The loss of all sites together, by tokens, at each step that all have. */
export function globalLoss(run: Run): { step: number[]; loss: (number | null)[] } {
  const steps = new Map<number, { loss: number; tokens: number; sites: number }>();
  for (const site of run.sites) {
    site.columns.step.forEach((step, i) => {
      const loss = site.columns.loss[i];
      if (loss === null) return;
      const each = steps.get(step) ?? { loss: 0, tokens: 0, sites: 0 };
      each.loss += loss * site.columns.tokens[i];
      each.tokens += site.columns.tokens[i];
      ++each.sites;
      steps.set(step, each);
    });
  }
  const all = [...steps].filter(([, each]) => each.sites === run.sites.length && each.tokens > 0).sort((a, b) => a[0] - b[0]);
  return { step: all.map(([step]) => step), loss: all.map(([, each]) => each.loss / each.tokens) };
}

/** One held-out loss a step: the mean over the sites that measured it. */
export function globalEvaluations(run: Run): { step: number; time: number; loss: number; bits: number }[] {
  const steps = new Map<number, { time: number; loss: number; bits: number; count: number }>();
  const bySite = new Map<string, { step: number; time: number; loss: number; bits: number }>();
  for (const each of run.evaluations) {
    if (each.loss === null || each.loss === undefined) continue;
    bySite.set(`${each.step}/${each.site}`, { step: each.step, time: each.time, loss: each.loss, bits: each.bits_per_byte ?? NaN });
  }
  for (const each of bySite.values()) {
    const known = steps.get(each.step) ?? { time: 0, loss: 0, bits: 0, count: 0 };
    known.time = Math.max(known.time, each.time);
    known.loss += each.loss;
    known.bits += each.bits;
    ++known.count;
    steps.set(each.step, known);
  }
  return [...steps]
    .sort((a, b) => a[0] - b[0])
    .map(([step, each]) => ({ step, time: each.time, loss: each.loss / each.count, bits: each.bits / each.count }));
}

export function chipRates(run: Run, axis: XAxis, keep: number): Table {
  return join(
    run.sites.map((site) => [
      xOf(site, axis),
      ...site.columns.ranks.map((rank) => smooth(rank.tokens.map((tokens, i) => (site.columns.step_s[i] > 0 ? tokens / site.columns.step_s[i] : null)), keep)),
    ]),
  );
}
