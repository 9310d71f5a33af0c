// OpenAI's own client, unmodified, against `pelago serve`: what it sends is understood, what comes
// back becomes its objects, streams, tool calls and classes of errors.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import OpenAI from 'openai';
import { startProgram } from '../program.mjs';
import { writeTinyModel } from '../tiny_model.mjs';

const kKeys = `
[[key]]
name = "lab"
key = "sk-lab-0123456789"

[[key]]
name = "slow"
key = "sk-slow-0123456789"
requests_per_minute = 1
`;
const kColour = {
  type: 'object',
  properties: { colour: { enum: ['red', 'green'] }, dark: { type: 'boolean' } },
  required: ['colour', 'dark'],
  additionalProperties: false,
};
const kPaint = { type: 'function', function: { name: 'paint', description: 'Paints the wall.', parameters: kColour } };
const kHello = [{ role: 'user', content: 'hello' }];

let server, folder, client;
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'pelago-client-'));
  writeTinyModel(join(folder, 'tiny'));
  writeFileSync(join(folder, 'keys.toml'), kKeys, { mode: 0o600 });
  server = await startProgram('serve', join(folder, 'tiny'), '--api-keys', join(folder, 'keys.toml'));
  client = clientOf('sk-lab-0123456789');
});
after(async () => {
  const code = await server?.end();
  rmSync(folder, { recursive: true, force: true });
  assert.equal(code, 0);
});

function clientOf(apiKey) {
  return new OpenAI({ baseURL: `${server.url}v1`, apiKey, maxRetries: 0 });
}

function checkColour(text) {
  const value = JSON.parse(text);
  assert.deepEqual(Object.keys(value), ['colour', 'dark']);
  assert.ok(['red', 'green'].includes(value.colour) && typeof value.dark === 'boolean');
}

async function metric(name) {
  const text = await (await fetch(`${server.url}metrics`, { headers: { authorization: 'Bearer sk-lab-0123456789' } })).text();
  return Number(new RegExp(`^pelago_${name} (.*)$`, 'm').exec(text)[1]);
}

test('models: listed, and found by name', async () => {
  const models = await client.models.list();
  assert.deepEqual(models.data.map((each) => each.id), ['tiny']);
  const model = await client.models.retrieve('tiny');
  assert.equal(model.object, 'model');
  assert.equal(model.owned_by, 'pelago');
});

test('completions: the same seed is the same text, whole or streamed, and tokens are counted', async () => {
  const asked = { model: 'tiny', prompt: 'int main(', max_tokens: 12, seed: 7, logprobs: 2, logit_bias: { 256: -100 } };
  const whole = await client.completions.create({ ...asked, n: 2 });
  assert.equal(whole.choices.length, 2);
  assert.equal(whole.choices[0].finish_reason, 'length');
  assert.equal(whole.choices[0].logprobs.tokens.length, 12);
  assert.equal(whole.usage.prompt_tokens, 9);
  assert.equal(whole.usage.completion_tokens, 24);
  let text = '';
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, whole.choices[0].text);
});

test('chat: an answer, and its stream with usage at the end', async () => {
  const asked = { model: 'tiny', messages: kHello, max_completion_tokens: 16, temperature: 0, logprobs: true, top_logprobs: 3 };
  const whole = await client.chat.completions.create(asked);
  assert.equal(whole.choices[0].message.role, 'assistant');
  assert.equal(whole.choices[0].logprobs.content.length, whole.usage.completion_tokens);
  const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
  let text = '';
  stream.on('content', (delta) => (text += delta));
  const streamed = await stream.finalChatCompletion();
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(streamed.choices[0].message.content, text);
  assert.deepEqual(streamed.usage, whole.usage);
});

test('tools: the client’s loop calls the function with what the model gave, and sends its result back', async () => {
  let given;
  const runner = client.chat.completions.runTools(
    {
      model: 'tiny',
      messages: kHello,
      max_completion_tokens: 100,
      seed: 3,
      tool_choice: { type: 'function', function: { name: 'paint' } },
      tools: [
        {
          type: 'function',
          function: {
            name: 'paint',
            description: 'Paints the wall.',
            parameters: kColour,
            parse: JSON.parse,
            function: (colour) => {
              given = colour;
              return 'painted';
            },
          },
        },
      ],
    },
    { maxChatCompletions: 2 },
  );
  assert.equal(await runner.finalFunctionToolCallResult(), 'painted');
  checkColour(JSON.stringify(given));
});

test('tools: a required call comes in a stream too, piece by piece', async () => {
  const stream = client.chat.completions.stream({ model: 'tiny', messages: kHello, max_completion_tokens: 100, seed: 4, tools: [kPaint], tool_choice: 'required' });
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
  assert.equal(finish_reason, 'tool_calls');
  assert.equal(message.tool_calls[0].function.name, 'paint');
  checkColour(message.tool_calls[0].function.arguments);
});

test('response_format: JSON of a schema, whatever the model would have said', async () => {
  const format = { type: 'json_schema', json_schema: { name: 'colour', strict: true, schema: kColour } };
  const answer = await client.chat.completions.parse({ model: 'tiny', messages: kHello, max_completion_tokens: 100, seed: 5, response_format: format });
  checkColour(answer.choices[0].message.content);
  assert.equal(answer.choices[0].finish_reason, 'stop');
});

test('embeddings: of length 1, one an input, in the form the client decodes by itself', async () => {
  const asked = { model: 'tiny', input: ['hello', 'world'] };
  const packed = await client.embeddings.create(asked);
  const plain = await client.embeddings.create({ ...asked, encoding_format: 'float' });
  assert.equal(packed.data.length, 2);
  packed.data.forEach(({ embedding }, idx) => {
    assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-5);
    embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[idx].embedding[at]) < 1e-6));
  });
});

test('abort: the work ends with the client’s wish for it', async () => {
  const controller = new AbortController();
  const asked = client.completions.create({ model: 'tiny', prompt: 'x', max_tokens: 100 }, { signal: controller.signal });
  controller.abort();
  await assert.rejects(asked, OpenAI.APIUserAbortError);
  // Where this process is held up, an answer may be complete before it can be left: then once more.
  const before = await metric('requests_cancelled_total');
  do {
    const stream = await client.completions.create({ model: 'tiny', prompt: 'x', max_tokens: 500, n: 16, stream: true, ignore_eos: true });
    for await (const _ of stream) break; // leaving the loop aborts
    while ((await metric('requests_running')) > 0);
  } while ((await metric('requests_cancelled_total')) === before);
  assert.equal(await metric('kv_pages_used'), 0);
});

test('errors are of the client’s classes', async () => {
  const chat = (more) => client.chat.completions.create({ model: 'tiny', messages: kHello, ...more });
  await assert.rejects(chat({ temperature: 9 }), (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature' && error.type === 'invalid_request_error');
  await assert.rejects(chat({ temprature: 1 }), OpenAI.BadRequestError);
  await assert.rejects(chat({ model: 'gpt-9' }), (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found');
  await assert.rejects(client.models.retrieve('gpt-9'), OpenAI.NotFoundError);
  await assert.rejects(chat({ messages: [{ role: 'user', content: 'long '.repeat(400) }] }), (error) => error instanceof OpenAI.BadRequestError && error.code === 'context_length_exceeded');
  await assert.rejects(clientOf('sk-wrong').models.list(), (error) => error instanceof OpenAI.AuthenticationError && error.code === 'invalid_api_key');
  const slow = clientOf('sk-slow-0123456789');
  const ask = () => slow.completions.create({ model: 'tiny', prompt: 'x', max_tokens: 1 });
  await ask();
  await assert.rejects(ask(), (error) => error instanceof OpenAI.RateLimitError && Number(error.headers.get('retry-after')) > 0);
});
