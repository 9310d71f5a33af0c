// A run folder that grows as a test tells it to: the files of docs/FILES.md, written as pelago does.
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

function device(name, tokens_s) {
  return {
    device: name,
    node: '',
    cores: [0],
    faults: [],
    predicted_step_s: 0.5,
    predicted_tokens_s: tokens_s,
    predicted_memory: { weights: 13e6, gradients: 26e6, optimizer: 79e6, activations: 44e6, buffers: 10e6 },
    memory_bytes: 80e9,
    measured: true,
  };
}

function site(name, chips) {
  return {
    name,
    listen: '127.0.0.1',
    batch_sequences: 8,
    first_sequence: 0,
    predicted_step_s: 0.5,
    bound_by: 'computing',
    devices: chips.map((chip) => device(chip, 500)),
    pipelines: [{ sequences: 8, microbatch: 4, predicted_step_s: 0.5, stages: chips.map((_, rank) => ({ first_block: rank * 2, last_block: rank * 2 + 2, ranks: [rank], recompute: false })) }],
    slice_optimizer: false,
  };
}

export class RunFolder {
  constructor(sites = { lingang: ['emulated:nvidia-a100-80g-sxm', 'emulated:nvidia-h20'], guizhou: ['emulated:huawei-910b2', 'emulated:huawei-910b2'] }) {
    this.parent = mkdtempSync(join(tmpdir(), 'pelago-run-'));
    this.path = join(this.parent, 'two-sites');
    this.sites = sites;
    this.now = Date.now() / 1000 - 600;
    mkdirSync(this.path);
    writeFileSync(join(this.path, 'job.toml'), 'name = "two-sites"\n');
  }

  remove() {
    rmSync(this.parent, { recursive: true, force: true });
  }

  plan(steps) {
    const names = Object.keys(this.sites);
    const plan = {
      version: 2,
      job_name: 'two-sites',
      steps,
      batch_sequences: 16,
      sequence_length: 64,
      num_parameters: 10_030_976,
      num_blocks: 4,
      sites: names.map((name) => site(name, this.sites[name])),
      links: names.length > 1 ? [{ from: names[0], to: names[1], bandwidth_mbit_s: 200, rtt_ms: 30, emulate: true }] : [],
      exchange: { inner_steps: 8, fragments: names.length > 1 ? 2 : 0, overlap_steps: 1, delta_bits: 4 },
      predicted_tokens_s: 2000,
      predicted_line_mbit_s: 1.2,
      warnings: [],
    };
    writeFileSync(join(this.path, 'plan.json'), JSON.stringify(plan));
  }

  metric(fields) {
    appendFileSync(join(this.path, 'metrics.jsonl'), JSON.stringify({ time: this.now, ...fields }) + '\n');
  }

  event(event, fields = {}) {
    appendFileSync(join(this.path, 'events.jsonl'), JSON.stringify({ event, time: this.now, ...fields }) + '\n');
  }

  /** Steps of every site, from first up to and with last. */
  steps(first, last) {
    for (let step = first; step <= last; ++step) {
      this.now += 0.55;
      Object.entries(this.sites).forEach(([name, chips], s) => {
        this.metric({
          kind: 'step',
          site: name,
          step,
          loss: 3 + 6 * Math.exp(-step / 30) + 0.1 * Math.sin(7 * step + s),
          grad_norm: 1,
          lr: 0.001,
          tokens: 512,
          step_s: 0.55,
          wait_line_s: 0.01,
          reduce_s: 0.04,
          skipped: false,
          ranks: chips.map((chip) => ({ device: chip, tokens: 512, compute_s: 0.4, wait_stages_s: 0.06, wait_ranks_s: 0.05, late_s: 0, host_busy_s: 0.1, peak_memory_bytes: 170e6 })),
        });
      });
      if (step % 4 === 0) this.event('commit', { exchange: step / 4 - 1, epoch: step / 4, members: Object.keys(this.sites), hash: 'ab' });
    }
  }

  evaluate(step) {
    for (const name of Object.keys(this.sites)) this.metric({ kind: 'evaluation', site: name, step, loss: 3.2 + 6 / (1 + step), bits_per_byte: 1.3, tokens: 8192 });
  }

  /** The clock of the run is put to now, as that of a run that goes on. */
  catchUp() {
    this.now = Date.now() / 1000;
  }
}
