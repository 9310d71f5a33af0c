// The chat page against `pelago serve` itself.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Browser, checkQuiet, kPatience_ms } from './browser.mjs';
import { startProgram } from './program.mjs';
import { writeTinyModel } from './tiny_model.mjs';

let browser, server, folder;
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'pelago-tiny-'));
  writeTinyModel(join(folder, 'tiny'));
  server = await startProgram('serve', join(folder, 'tiny'));
  browser = await Browser.open();
});
after(async () => {
  await browser?.close();
  const code = await server?.end();
  rmSync(folder, { recursive: true, force: true });
  assert.equal(code, 0);
});

async function scene(t) {
  const view = await browser.page(server.url);
  t.after(() => view.close());
  await view.page.evaluate(() => localStorage.setItem('pelago.settings', JSON.stringify({ max_tokens: 24, temperature: 0 })));
  await view.page.reload();
  await view.page.locator('.model.ready').filter({ hasText: 'tiny' }).waitFor();
  return view;
}

test('a model of one’s own answers in the page, and a text is gone on with', async (t) => {
  const view = await scene(t);
  const { page } = view;
  const message = page.getByRole('textbox', { name: 'Message', exact: true });
  await message.fill('hello');
  await message.press('Enter');
  await page.locator('.stats').filter({ hasText: '24 tokens' }).waitFor({ timeout: kPatience_ms });
  await page.locator('.stats').filter({ hasText: 'cut off' }).waitFor();
  await page.getByRole('button', { name: 'Answer again' }).click();
  await page.locator('.turn').filter({ hasText: '2/2' }).waitFor();
  await page.getByRole('button', { name: 'Text', exact: true }).click();
  const text = page.getByRole('textbox', { name: 'Text' });
  await text.fill('int main(');
  await page.getByRole('button', { name: 'Go on' }).click();
  await page.getByRole('button', { name: 'Take it back' }).and(page.locator(':enabled')).waitFor();
  assert.ok((await text.inputValue()).startsWith('int main('));
  assert.ok((await text.inputValue()).length > 'int main('.length);
  await checkQuiet(view);
});

test('what the server refuses is told in its words', async (t) => {
  const view = await scene(t);
  const { page } = view;
  const message = page.getByRole('textbox', { name: 'Message', exact: true });
  await message.fill('too long '.repeat(200));
  await message.press('Enter');
  await page.locator('.error').filter({ hasText: /512/ }).waitFor({ timeout: kPatience_ms });
  await checkQuiet(view);
});
