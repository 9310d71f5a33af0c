// A server that speaks the API as `pelago serve` does, with scripted answers in place of a model:
// for work on the chat page, and for tests of what a real model does only by chance.
//   node dev/mock.mjs [PORT]      serves web/dist as well; port 0: any free one, printed
// What the last message holds decides: "fail", "cut", "slow", "busy", "script", "markdown", "long".
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const kDist = join(fileURLToPath(new URL('.', import.meta.url)), '..', 'dist');
const kTypes = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml' };
const kPolicy =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

const kMarkdown = `Pelago cuts a batch by **speed**, not by count. A short tour:

1. Each site takes a *share* of the batch.
2. After \`H\` steps a fragment goes over the line:
   - 4 bits a value,
   - 0.42 byte a parameter and round.

\`\`\`cpp
// The sum of token losses, divided once: any split gives the same gradient.
double mean_loss(std::span<const double> losses) {
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return losses.empty() ? 0.0 : sum / losses.size();
}
\`\`\`

| chip | tokens/s | busy |
|:-----|---------:|:----:|
| A100 | 721 | 58 % |
| H20 | 721 | 35 % |

> A site that dies is a case we handle; a site that goes on with wrong weights is not.

See [the paper](https://arxiv.org/abs/2311.08105) for more.`;
const kScript = `<img src=x onerror="window.pwned = 1"><script>window.pwned = 1</script> [link](javascript:window.pwned=1) <iframe srcdoc="x"></iframe>\n\n\`\`\`html\n<script>window.pwned = 1</script>\n\`\`\``;

function answerTo(text) {
  if (/script/.test(text)) return kScript;
  if (/markdown/.test(text)) return kMarkdown;
  if (/long|slow/.test(text)) return Array.from({ length: 400 }, (_, i) => `word${i}`).join(' ');
  return `You said: ${text}`;
}

function refuse(response, status, message, headers = {}) {
  response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
  response.end(JSON.stringify({ error: { message, type: 'invalid_request_error', param: null, code: null } }));
}

async function complete(request, response, is_chat) {
  let body = '';
  for await (const piece of request) body += piece;
  const asked = JSON.parse(body);
  const text = is_chat ? asked.messages.at(-1).content : asked.prompt;
  if (/fail/.test(text)) return refuse(response, 400, 'temperature: 9 is out of range, 0 to 2');
  if (/busy/.test(text)) return refuse(response, 429, 'all places are taken', { 'Retry-After': '3' });
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
  let is_gone = false;
  response.on('close', () => (is_gone = true));
  const pieces = answerTo(text).match(/\s*\S{1,6}|\s+/g) ?? [];
  const send = (fields) => response.write(`data: ${JSON.stringify({ id: 'x', object: 'chat.completion.chunk', model: asked.model, ...fields })}\n\n`);
  const choice = (piece, finish) => ({ choices: [is_chat ? { index: 0, delta: piece === null ? {} : { content: piece }, finish_reason: finish } : { index: 0, text: piece ?? '', finish_reason: finish }] });
  for (let i = 0; i < pieces.length && !is_gone; ++i) {
    send(choice(pieces[i], null));
    if (/cut/.test(text) && i === 1) return response.destroy();
    await new Promise((done) => setTimeout(done, /slow/.test(text) ? 60 : 4));
  }
  if (is_gone) return;
  send(choice(null, 'stop'));
  send({ choices: [], usage: { prompt_tokens: 12, completion_tokens: pieces.length, total_tokens: 12 + pieces.length } });
  response.end('data: [DONE]\n\n');
}

export function startMock(port = 0) {
  const server = createServer((request, response) => {
    const path = new URL(request.url, 'http://localhost').pathname;
    if (path === '/v1/models') {
      response.writeHead(200, { 'Content-Type': 'application/json' });
      return response.end(JSON.stringify({ object: 'list', data: [{ id: 'two-sites', object: 'model', max_model_len: 1024 }] }));
    }
    if (path === '/v1/chat/completions' || path === '/v1/completions') {
      return complete(request, response, path.includes('chat')).catch((error) => refuse(response, 500, String(error)));
    }
    try {
      const file = normalize(path === '/' ? '/chat.html' : path);
      response.writeHead(200, { 'Content-Type': kTypes[extname(file)] ?? 'application/octet-stream', 'Content-Security-Policy': kPolicy });
      response.end(readFileSync(join(kDist, file)));
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((done) => server.listen(port, '127.0.0.1', () => done(server)));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = await startMock(Number(process.argv[2] ?? 8000));
  console.log(`http://127.0.0.1:${server.address().port}/`);
}
