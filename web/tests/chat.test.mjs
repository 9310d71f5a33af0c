// The chat page, clicked through: against a server with scripted answers (dev/mock.mjs), which can
// fail, dawdle and break off on order.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startMock } from '../dev/mock.mjs';
import { Browser, checkFits, checkQuiet, checkReachable, kPatience_ms, picture } from './browser.mjs';

let browser, mock, url;
before(async () => {
  browser = await Browser.open();
  mock = await startMock(0);
  url = `http://127.0.0.1:${mock.address().port}/`;
});
after(async () => {
  await browser?.close();
  mock?.closeAllConnections();
  mock?.close();
});

async function scene(t, options = {}) {
  const view = await browser.page(url, options);
  t.after(() => view.close());
  await view.page.locator('.model.ready').waitFor();
  return view;
}
const composer = (page) => page.getByRole('textbox', { name: 'Message', exact: true });
const answers = (page) => page.locator('article.assistant');
const questions = (page) => page.locator('article.user');

async function ask(page, text) {
  await composer(page).fill(text);
  await composer(page).press('Enter');
}
/** Until the n-th answer is complete. */
async function answered(page, n = 1) {
  await answers(page).nth(n - 1).getByRole('button', { name: 'Copy the answer' }).waitFor();
  await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
}
async function says(locator, text) {
  await locator.filter({ hasText: text }).first().waitFor({ timeout: kPatience_ms });
}

test('a question is answered, told in tokens, and kept over a reload', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await checkReachable(page);
  await ask(page, 'Hello over there');
  await answered(page);
  await says(answers(page), 'You said: Hello over there');
  // Not the speed: on a busy machine a short answer comes in one piece.
  await says(page.locator('.stats'), 'tokens');
  assert.match(await page.title(), /^Hello over there/);
  await picture(page, 'chat-light');
  await page.reload();
  await page.getByRole('button', { name: 'Hello over there', exact: true }).click();
  await says(answers(page), 'You said: Hello over there');
  await page.getByRole('searchbox').fill('nothing of the kind');
  await says(page.locator('.none'), 'Nothing found');
  await page.getByRole('searchbox').fill('over there');
  await page.getByRole('button', { name: 'Delete “Hello over there”' }).click();
  await page.getByRole('button', { name: 'Delete', exact: true }).click();
  await page.getByRole('searchbox').fill('');
  await page.reload();
  await says(page.locator('.none'), 'What you ask is kept here');
  await checkQuiet(view);
});

test('an answer can be stopped by button and by Esc, and what came stays', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await ask(page, 'slow please');
  await says(answers(page), 'word0');
  await page.getByRole('button', { name: 'Stop the answer' }).click();
  await says(page.locator('.stats'), 'stopped');
  const text = await answers(page).first().locator('.body').innerText();
  assert.ok(text.startsWith('word0') && !text.includes('word399'));
  await ask(page, 'slow again');
  await says(answers(page).nth(1), 'word0');
  await page.keyboard.press('Escape');
  await says(answers(page).nth(1).locator('.stats'), 'stopped');
  await checkQuiet(view);
});

test('an answer can be had again, and both can be looked at', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await ask(page, 'once');
  await answered(page);
  await page.getByRole('button', { name: 'Answer again' }).click();
  await says(page.locator('.turn'), '2/2');
  await page.getByRole('button', { name: 'Earlier answer' }).click();
  await says(page.locator('.turn'), '1/2');
  await checkQuiet(view);
});

test('a question that is edited takes what followed it away', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await ask(page, 'first');
  await answered(page, 1);
  await ask(page, 'second');
  await answered(page, 2);
  await composer(page).press('ArrowUp');
  const editor = page.getByRole('textbox', { name: 'Edit your message' });
  assert.equal(await editor.inputValue(), 'second');
  await editor.press('Escape');
  await questions(page).first().hover();
  await questions(page).first().getByRole('button', { name: 'Edit your message' }).click();
  await editor.fill('changed');
  await editor.press('Enter');
  await says(answers(page), 'You said: changed');
  await answered(page, 1);
  assert.equal(await answers(page).count(), 1);
  await checkQuiet(view);
});

test('markup and scripts of an answer are shown and never run', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await ask(page, '<img src=x onerror="window.pwned=1"> script');
  await answered(page);
  await says(answers(page), '<script>window.pwned = 1</script>');
  assert.equal(await page.locator('article img, article script, article iframe').count(), 0);
  assert.equal(await page.locator('article a').count(), 0);
  await page.reload();
  await page.getByRole('navigation').getByRole('button', { name: /script$/ }).first().click();
  await says(answers(page), 'onerror');
  await checkQuiet(view);
});

test('markdown is drawn and code can be copied', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await ask(page, 'markdown');
  await answered(page);
  assert.equal(await page.locator('article.assistant ol > li').count(), 2);
  assert.equal(await page.locator('article.assistant ul > li').count(), 2);
  assert.equal(await page.locator('article.assistant tbody tr').count(), 2);
  await says(page.locator('article.assistant strong'), 'speed');
  assert.equal(await page.locator('article.assistant a').getAttribute('rel'), 'noopener noreferrer nofollow');
  await page.getByRole('button', { name: 'Copy this code' }).click();
  await says(page.locator('figcaption'), 'Copied');
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^\/\/ The sum of token losses[^]*\n}$/);
  await picture(page, 'chat-markdown');
  await checkQuiet(view);
});

test('what goes wrong is told in the words of the server, and can be tried again', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await ask(page, 'fail');
  await says(page.getByRole('alert'), 'temperature: 9 is out of range');
  await ask(page, 'busy');
  await says(page.getByRole('alert'), 'Try again in 3 s');
  await ask(page, 'cut');
  await says(page.getByRole('alert'), 'broke in the middle');
  await page.getByRole('button', { name: 'Try again' }).last().click();
  await says(page.locator('.turn'), '2/2');
  await picture(page, 'chat-errors');
  await checkQuiet(view);
});

test('settings and the system prompt reach the server', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await page.getByPlaceholder('How the model should answer').fill('Be brief.');
  await page.getByRole('spinbutton', { name: 'Temperature' }).fill('0.25');
  await page.getByRole('spinbutton', { name: /Top-k/ }).fill('40');
  await page.getByRole('textbox', { name: 'Seed' }).fill('7');
  await page.getByRole('textbox', { name: 'API key' }).fill('sk-test');
  await page.getByRole('button', { name: 'Use', exact: true }).click();
  const [request] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), ask(page, 'hi')]);
  const body = request.postDataJSON();
  assert.deepEqual(body.messages, [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'hi' },
  ]);
  assert.equal(body.temperature, 0.25);
  assert.equal(body.top_k, 40);
  assert.equal(body.seed, 7);
  assert.equal(body.min_p, undefined);
  assert.equal(request.headers().authorization, 'Bearer sk-test');
  await answered(page);
  await checkReachable(page);
  await page.reload();
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  assert.equal(await page.getByRole('spinbutton', { name: 'Temperature' }).inputValue(), '0.25');
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes('sk-test')), false);
  await checkQuiet(view);
});

test('a server that goes away is said so, and found again', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await page.route('**/v1/**', (route) => route.abort());
  await ask(page, 'anyone?');
  await says(page.locator('.error'), 'cannot be reached');
  await says(page.locator('.banner'), 'Not connected');
  await page.unroute('**/v1/**');
  await page.getByRole('button', { name: 'Try now' }).click();
  await page.locator('.model.ready').waitFor();
  await page.getByRole('button', { name: 'Try again' }).click();
  await says(answers(page), 'You said: anyone?');
  await checkQuiet(view);
});

test('a text is gone on with, and the model’s part taken back', async (t) => {
  const view = await scene(t);
  const { page } = view;
  await page.getByRole('button', { name: 'Text', exact: true }).click();
  const text = page.getByRole('textbox', { name: 'Text' });
  await text.fill('#include <vec');
  await text.press('Control+Enter');
  await page.getByRole('button', { name: 'Take it back' }).and(page.locator(':enabled')).waitFor();
  assert.equal(await text.inputValue(), '#include <vecYou said: #include <vec');
  await page.getByRole('button', { name: 'Take it back' }).click();
  assert.equal(await text.inputValue(), '#include <vec');
  await checkQuiet(view);
});

test('on a phone the list is a drawer, and nothing sticks out', async (t) => {
  const view = await scene(t, { width: 390, height: 844, theme: 'dark' });
  const { page } = view;
  await ask(page, 'markdown');
  await answered(page);
  await checkFits(page);
  await picture(page, 'chat-phone-dark');
  await page.getByRole('button', { name: 'Show the conversations' }).click();
  await page.getByRole('button', { name: 'New chat' }).click();
  await page.getByRole('navigation').waitFor({ state: 'detached' });
  await says(page.locator('.hello'), 'What shall we talk about?');
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await checkFits(page);
  await page.getByRole('button', { name: 'Close the settings' }).click();
  await checkQuiet(view);
});
