// A headless Chromium for the tests, and what all of them watch: that a page asks no other host for
// anything, logs no error and runs no script that it was told.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const kBrowsers = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const kArguments = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
export const kPatience_ms = 120_000; // for anything at all: a machine may be busy with other tests

export class Browser {
  static async open() {
    const program = kBrowsers.find((each) => existsSync(each));
    assert.ok(program, 'no chromium');
    const profile = mkdtempSync(join(tmpdir(), 'pelago-chromium-'));
    const browser = await chromium.launch({ executablePath: program, headless: true, args: kArguments, timeout: kPatience_ms, env: { ...process.env, HOME: profile } });
    return new Browser(browser, profile);
  }

  constructor(browser, profile) {
    this.browser = browser;
    this.profile = profile;
  }

  async close() {
    await this.browser.close();
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }

  /** A page in a profile of its own. watched.errors and watched.strangers should stay empty. */
  async page(url, { width = 1280, height = 860, theme = 'light' } = {}) {
    const context = await this.browser.newContext({ viewport: { width, height }, colorScheme: theme, permissions: ['clipboard-read', 'clipboard-write'] });
    context.setDefaultTimeout(kPatience_ms);
    const page = await context.newPage();
    const watched = { errors: [], strangers: [] };
    const origin = new URL(url).origin;
    page.on('pageerror', (error) => watched.errors.push(error.message));
    page.on('console', (message) => {
      const is_network = /Failed to load resource|net::ERR/.test(message.text());
      if (message.type() === 'error' && !is_network) watched.errors.push(message.text());
    });
    page.on('request', (request) => {
      const address = request.url();
      if (!address.startsWith(origin) && !address.startsWith('data:') && !address.startsWith('blob:')) watched.strangers.push(address);
    });
    await page.goto(url, { timeout: kPatience_ms });
    return { page, watched, close: () => context.close() };
  }
}

export async function checkQuiet({ page, watched }) {
  assert.deepEqual(watched.errors, []);
  assert.deepEqual(watched.strangers, []);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
}

/** What a screen reader and a keyboard need, as far as a program can tell. */
export async function checkReachable(page) {
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll('button, input, textarea, select, [role=img], a[href]')]
      .filter((element) => {
        const label = element.getAttribute('aria-label') || element.getAttribute('title') || element.getAttribute('placeholder') || element.textContent.trim();
        return !label && !(element.labels && element.labels.length > 0);
      })
      .map((element) => element.outerHTML.slice(0, 120)),
  );
  assert.deepEqual(nameless, []);
}

export async function checkFits(page) {
  const [needed, there] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(needed <= there, `the page is ${needed} px wide on a screen of ${there}`);
}

/** Takes a picture where PELAGO_PICTURES names a folder: for people who look. */
export async function picture(page, name) {
  const folder = process.env.PELAGO_PICTURES;
  if (folder) await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
}
