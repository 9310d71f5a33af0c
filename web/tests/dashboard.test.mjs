// The dashboard, clicked through against the real program.
import assert from 'node:assert/strict';
import { utimesSync, writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { Browser, checkFits, checkQuiet, checkReachable, kPatience_ms, picture } from './browser.mjs';
import { startProgram } from './program.mjs';
import { RunFolder } from './run_folder.mjs';

let browser;
before(async () => (browser = await Browser.open()));
after(async () => browser?.close());

/** A run, its server and a page that looks at it; all of them end with the test. */
async function scene(t, { run = new RunFolder(), ...options } = {}) {
  const server = await startProgram('dashboard', run.path);
  const view = await browser.page(server.url, options);
  t.after(async () => {
    await view.close();
    assert.equal(await server.end(), 0);
    run.remove();
  });
  return { run, ...view };
}

const badge = (page) => page.locator('.badge');
async function says(locator, text) {
  await locator.filter({ hasText: text }).first().waitFor({ timeout: kPatience_ms });
}

test('a run that begins fills an empty page by itself, and ends as finished', async (t) => {
  const { run, page, watched } = await scene(t);
  await says(page.locator('h2'), 'No run here yet');
  run.catchUp();
  run.plan(40);
  run.event('run_starting', { step: 0, resumed: false });
  run.evaluate(0);
  await says(badge(page), 'Starting');
  run.steps(1, 20);
  run.catchUp();
  run.event('checkpoint', { site: 'lingang', step: 20 });
  await says(badge(page), 'Training');
  await says(page.locator('.progress'), 'step 20 of 40');
  await says(page.locator('.eta'), 'to go');
  assert.equal(await page.locator('[data-room]').count(), 2);
  assert.equal(await page.locator('tbody .health').count(), 4);
  assert.equal(await page.locator('.health.good').count(), 4);
  await says(page.locator('.plate'), '200');
  assert.equal(await page.locator('canvas').count(), 2);
  await picture(page, 'dashboard-live');
  run.steps(21, 40);
  run.evaluate(40);
  run.event('run_over', { commits: 10 });
  run.event('summary', { line_sent_bytes: 5e7, line_bytes_per_parameter: 0.43 });
  await says(badge(page), 'Finished');
  await says(page.locator('.tile'), '3.346');
  await says(page.locator('dd'), '0.430 B');
  await checkReachable(page);
  await checkQuiet({ page, watched });
});

test('a lost chip is seen, and so is its return', async (t) => {
  const run = new RunFolder();
  run.plan(400);
  run.catchUp();
  run.event('run_started', { step: 0 });
  run.steps(1, 12);
  run.catchUp();
  // A run that went back commits again what it had committed.
  for (let i = 0; i < 2; ++i) run.event('commit', { exchange: 2, epoch: 3, members: ['guizhou'], hash: 'ab' });
  const { page, watched } = await scene(t, { run });
  await says(page.locator('.tile'), 'nothing was lost');
  run.event('device_lost', { site: 'lingang', rank: 1, device: 'emulated:nvidia-h20', step: 12, why: 'its device answers no question' });
  await page.locator('.health.lost').waitFor();
  await says(page.locator('.tile.trouble'), 'not made good');
  await says(page.locator('.chip.lost'), 'H20');
  await says(page.getByRole('list', { name: 'events, newest first' }), 'its device answers no question');
  await picture(page, 'dashboard-lost');
  run.event('device_returned', { site: 'lingang', rank: 1, device: 'emulated:nvidia-h20', step: 13 });
  await page.locator('.health.lost').waitFor({ state: 'detached' });
  await says(page.locator('.tile'), 'all came back');
  await checkQuiet({ page, watched });
});

test('a server that goes away is said so, what is known stays, and the page finds back', async (t) => {
  const run = new RunFolder();
  run.plan(40);
  run.catchUp();
  run.steps(1, 10);
  const { page, watched } = await scene(t, { run });
  await says(page.locator('.progress'), 'step 10 of 40');
  await page.route('**/api/run*', (route) => route.abort());
  await says(page.getByRole('alert'), 'Not connected');
  await says(page.locator('.progress'), 'step 10 of 40');
  run.steps(11, 12);
  await page.unroute('**/api/run*');
  await page.getByRole('button', { name: 'Try now' }).click();
  await says(page.locator('.progress'), 'step 12 of 40');
  await page.getByRole('alert').waitFor({ state: 'detached' });
  await checkQuiet({ page, watched });
});

test('a run that failed says why, one that fell silent says since when', async (t) => {
  const failed = new RunFolder();
  failed.plan(40);
  failed.steps(1, 4);
  failed.event('failed', { site: 'lingang', message: 'the disk of lingang is gone' });
  const first = await scene(t, { run: failed });
  await says(badge(first.page), 'Failed');
  await says(first.page.locator('.detail'), 'the disk of lingang is gone');
  const silent = new RunFolder();
  silent.plan(40);
  silent.steps(1, 4);
  for (const file of ['metrics.jsonl', 'events.jsonl']) utimesSync(`${silent.path}/${file}`, silent.now - 3000, silent.now - 3000);
  const second = await scene(t, { run: silent });
  await says(badge(second.page), 'No sign of life');
});

test('colours are kept, and a phone needs no sideways scrolling', async (t) => {
  const run = new RunFolder();
  run.plan(40);
  run.event('run_started', { step: 0 });
  run.steps(1, 40);
  run.evaluate(40);
  run.event('run_over', { commits: 10 });
  const { page, watched } = await scene(t, { run, width: 390, height: 844, theme: 'dark' });
  await says(badge(page), 'Finished');
  await checkFits(page);
  await picture(page, 'dashboard-phone-dark');
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
  await page.getByRole('button', { name: 'Switch to light colours' }).click();
  await page.reload();
  await says(badge(page), 'Finished');
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'light');
  await page.getByRole('button', { name: 'time', exact: true }).click();
  await page.locator('[role=img][aria-label^="Loss by time"]').waitFor();
  await page.getByLabel('trouble only').check();
  await says(page.locator('.empty'), 'No trouble so far');
  await checkFits(page);
  await checkQuiet({ page, watched });
});

test('names that are markup stay text', async (t) => {
  const evil = '<img src=x onerror="window.pwned=1">';
  const run = new RunFolder({ [evil]: ['cpu'] });
  run.plan(8);
  run.steps(1, 8);
  run.event('warning', { site: evil, message: '<script>window.pwned = 1</script>' });
  run.event('finished', { site: evil, step: 8, wall_s: 4 });
  const { page, watched } = await scene(t, { run });
  await says(badge(page), 'Finished');
  await says(page.locator('ol li'), '<script>window.pwned = 1</script>');
  assert.equal(await page.locator('img[src="x"]').count(), 0);
  await checkQuiet({ page, watched });
});

test('a long run comes whole, in steps, and stays quick to draw', async (t) => {
  const run = new RunFolder({ room: ['cpu'] });
  run.plan(20_000);
  const lines = [];
  for (let step = 1; step <= 20_000; ++step) {
    lines.push(
      JSON.stringify({ kind: 'step', site: 'room', step, time: run.now + 0.02 * step, loss: 2 + 5 / Math.sqrt(step), tokens: 512, step_s: 0.02, wait_line_s: 0, reduce_s: 0, ranks: [{ device: 'cpu', tokens: 512, compute_s: 0.018, wait_stages_s: 0, wait_ranks_s: 0 }] }),
    );
  }
  writeFileSync(`${run.path}/metrics.jsonl`, lines.join('\n') + '\n');
  run.event('finished', { site: 'room', step: 20_000, wall_s: 400 });
  const { page, watched } = await scene(t, { run });
  await says(page.locator('.progress'), 'step 20,000 of 20,000');
  await says(badge(page), 'Finished');
  await checkQuiet({ page, watched });
});
