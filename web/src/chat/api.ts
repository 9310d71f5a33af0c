// The OpenAI-compatible API of the server that this page came from, as far as a chat needs it: the
// list of models, and answers that stream as server-sent events.

export interface Sampling {
  temperature: number;
  top_p: number;
  top_k: number; // 0: all
  min_p: number;
  max_tokens: number; // 0: as many as the context holds
  repetition_penalty: number;
  presence_penalty: number;
  frequency_penalty: number;
  seed: string; // empty: a new one each time
  stop: string; // one a line
}

export const kDefaults: Sampling = {
  temperature: 0.7,
  top_p: 0.95,
  top_k: 0,
  min_p: 0,
  max_tokens: 1024,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  seed: '',
  stop: '',
};

export interface Turn {
  role: 'system' | 'user' | 'assistant';
  content: string;
}

export interface Usage {
  prompt_tokens?: number;
  completion_tokens?: number;
  prompt_tokens_details?: { cached_tokens?: number };
}

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly retry_after_s: number | null = null,
  ) {
    super(message);
  }
}

function headers(key: string): HeadersInit {
  return key ? { 'Content-Type': 'application/json', Authorization: `Bearer ${key}` } : { 'Content-Type': 'application/json' };
}

async function refusal(response: Response): Promise<ApiError> {
  let message = `${response.status} ${response.statusText}`.trim();
  try {
    const body = await response.json();
    message = body?.error?.message ?? message;
  } catch {
    // No JSON: the status has to do.
  }
  const retry = Number(response.headers.get('Retry-After'));
  return new ApiError(message, response.status, Number.isFinite(retry) && retry > 0 ? retry : null);
}

export interface Model {
  id: string;
  context: number | null;
}

export async function listModels(key: string): Promise<Model[]> {
  const response = await fetch('v1/models', { headers: headers(key), signal: AbortSignal.timeout(10_000) });
  if (!response.ok) throw await refusal(response);
  const body = await response.json();
  return (body.data ?? []).map((each: { id: string; max_model_len?: number; context_length?: number }) => ({
    id: String(each.id),
    context: each.max_model_len ?? each.context_length ?? null,
  }));
}

function body(sampling: Sampling): Record<string, unknown> {
  const fields: Record<string, unknown> = { temperature: sampling.temperature, top_p: sampling.top_p, stream: true, stream_options: { include_usage: true } };
  if (sampling.max_tokens > 0) fields.max_tokens = sampling.max_tokens;
  if (sampling.top_k > 0) fields.top_k = sampling.top_k;
  if (sampling.min_p > 0) fields.min_p = sampling.min_p;
  if (sampling.repetition_penalty !== 1) fields.repetition_penalty = sampling.repetition_penalty;
  if (sampling.presence_penalty !== 0) fields.presence_penalty = sampling.presence_penalty;
  if (sampling.frequency_penalty !== 0) fields.frequency_penalty = sampling.frequency_penalty;
  if (sampling.seed.trim() !== '' && Number.isInteger(Number(sampling.seed))) fields.seed = Number(sampling.seed);
  const stop = sampling.stop.split('\n').filter((line) => line !== '');
  if (stop.length > 0) fields.stop = stop;
  return fields;
}

export interface Ask {
  model: string;
  key: string;
  sampling: Sampling;
  /** A conversation, or a text to go on with. */
  turns?: Turn[];
  prompt?: string;
  signal: AbortSignal;
  on_text: (text: string) => void;
}

export interface Ended {
  finish: string;
  usage: Usage | null;
}

/** Streams one answer. Throws ApiError, or AbortError if the signal ended it. */
export async function stream(ask: Ask): Promise<Ended> {
  const path = ask.turns ? 'v1/chat/completions' : 'v1/completions';
  const asked = ask.turns ? { messages: ask.turns } : { prompt: ask.prompt };
  let response: Response;
  try {
    response = await fetch(path, { method: 'POST', headers: headers(ask.key), body: JSON.stringify({ model: ask.model, ...asked, ...body(ask.sampling) }), signal: ask.signal });
  } catch (error) {
    if (ask.signal.aborted) throw error;
    throw new ApiError('The server cannot be reached.', 0);
  }
  if (!response.ok) throw await refusal(response);
  if (!response.body) throw new ApiError('The server sent no answer.', response.status);
  const ended: Ended = { finish: '', usage: null };
  let is_complete = false;
  const take = (data: string) => {
    if (data === '[DONE]') {
      is_complete = true;
      return;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(String(event.error.message ?? event.error), Number(event.error.code) || 500);
    if (event.usage) ended.usage = event.usage;
    const choice = event.choices?.[0];
    if (!choice) return;
    const text = choice.delta?.content ?? choice.text ?? '';
    if (text) ask.on_text(text);
    if (choice.finish_reason) ended.finish = choice.finish_reason;
  };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      buffered += value;
      for (let end = buffered.search(/\r?\n\r?\n/); end >= 0; end = buffered.search(/\r?\n\r?\n/)) {
        const data = buffered
          .slice(0, end)
          .split(/\r?\n/)
          .filter((line) => line.startsWith('data:'))
          .map((line) => line.slice(5).trimStart())
          .join('\n');
        buffered = buffered.slice(end).replace(/^\r?\n\r?\n/, '');
        if (data) take(data);
      }
    }
  } catch (error) {
    if (ask.signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError(error instanceof SyntaxError ? 'The server sent something that is no answer.' : 'The connection broke in the middle of the answer.', 0);
  }
  if (!is_complete && !ended.finish) throw new ApiError('The connection broke in the middle of the answer.', 0);
  return ended;
}
