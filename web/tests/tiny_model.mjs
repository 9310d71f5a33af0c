// A model folder as small as one can be: two blocks of random weights and a tokenizer of single
// bytes. What it says is noise; that it says it, piece by piece, is what a test of the page needs.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const kHidden = 32;
const kHeads = 2;
const kHeadDim = 16;
const kFeedForward = 64;
const kBlocks = 2;
const kVocabulary = 257;

/** GPT-2's alphabet: a printable letter for each byte. */
function byteAlphabet() {
  const printable = [[33, 126], [161, 172], [174, 255]].flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => from + i));
  const letters = new Map(printable.map((byte) => [byte, String.fromCharCode(byte)]));
  for (let byte = 0, next = 256; byte < 256; ++byte) if (!letters.has(byte)) letters.set(byte, String.fromCharCode(next++));
  return [...printable, ...Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !printable.includes(byte))].map((byte) => letters.get(byte));
}

function safetensors(shapes) {
  let state = 12345;
  const draw = () => ((state = (state * 1103515245 + 12345) % 2147483648) / 2147483648 - 0.5) * 0.4;
  const header = {};
  const parts = [];
  let at = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const count = shape.reduce((all, each) => all * each, 1);
    const values = Float32Array.from({ length: count }, () => (name.includes('norm') ? 1 : draw()));
    // End-of-text has no direction: its logit is 0, and the likeliest token another.
    if (name.includes('embed')) values.fill(0, count - kHidden);
    header[name] = { dtype: 'F32', shape, data_offsets: [at, at + 4 * count] };
    parts.push(Buffer.from(values.buffer));
    at += 4 * count;
  }
  let text = JSON.stringify(header);
  text += ' '.repeat((8 - (text.length % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, Buffer.from(text), ...parts]);
}

export function writeTinyModel(folder) {
  mkdirSync(folder, { recursive: true });
  const config = {
    architectures: ['Qwen3ForCausalLM'],
    model_type: 'qwen3',
    attention_bias: false,
    bos_token_id: null,
    eos_token_id: kVocabulary - 1,
    head_dim: kHeadDim,
    hidden_act: 'silu',
    hidden_size: kHidden,
    intermediate_size: kFeedForward,
    max_position_embeddings: 512,
    num_attention_heads: kHeads,
    num_hidden_layers: kBlocks,
    num_key_value_heads: 1,
    rms_norm_eps: 1e-6,
    rope_theta: 10000.0,
    tie_word_embeddings: true,
    torch_dtype: 'float32',
    vocab_size: kVocabulary,
  };
  const shapes = { 'model.embed_tokens.weight': [kVocabulary, kHidden], 'model.norm.weight': [kHidden] };
  for (let block = 0; block < kBlocks; ++block) {
    const prefix = `model.layers.${block}.`;
    Object.assign(shapes, {
      [`${prefix}input_layernorm.weight`]: [kHidden],
      [`${prefix}post_attention_layernorm.weight`]: [kHidden],
      [`${prefix}self_attn.q_proj.weight`]: [kHeads * kHeadDim, kHidden],
      [`${prefix}self_attn.k_proj.weight`]: [kHeadDim, kHidden],
      [`${prefix}self_attn.v_proj.weight`]: [kHeadDim, kHidden],
      [`${prefix}self_attn.o_proj.weight`]: [kHidden, kHeads * kHeadDim],
      [`${prefix}self_attn.q_norm.weight`]: [kHeadDim],
      [`${prefix}self_attn.k_norm.weight`]: [kHeadDim],
      [`${prefix}mlp.gate_proj.weight`]: [kFeedForward, kHidden],
      [`${prefix}mlp.up_proj.weight`]: [kFeedForward, kHidden],
      [`${prefix}mlp.down_proj.weight`]: [kHidden, kFeedForward],
    });
  }
  const vocab = Object.fromEntries(byteAlphabet().map((letter, id) => [letter, id]));
  const end = { id: kVocabulary - 1, content: '<|endoftext|>', single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [end],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, byte_fallback: false, ignore_merges: false, vocab: { ...vocab }, merges: [] },
  };
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  writeFileSync(join(folder, 'generation_config.json'), JSON.stringify({ eos_token_id: kVocabulary - 1 }));
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify({ tokenizer_class: 'PreTrainedTokenizerFast', eos_token: '<|endoftext|>' }));
  writeFileSync(join(folder, 'model.safetensors'), safetensors(shapes));
}
