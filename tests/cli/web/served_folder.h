// A model folder as small as one can be: one block of fixed noise, a token a byte. Its context is
// so long that no answer ends by itself while a test looks at it.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace pelago::testing {

/// GPT-2's letters for bytes, in the order of their tokens.
inline std::vector<std::string> byte_letters() {
  std::vector<std::string> letters;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int letter = is_printable ? byte : next++;
    letters.push_back(letter < 128 ? std::string(1, static_cast<char>(letter))
                                   : std::string{static_cast<char>(0xC0 | (letter >> 6)),
                                                 static_cast<char>(0x80 | (letter & 63))});
  }
  return letters;
}

inline std::string safetensors_of(
    const std::vector<std::pair<std::string, std::vector<size_t>>>& shapes) {
  nlohmann::json header;
  std::string values;
  uint32_t state = 12345;
  for (const auto& [name, shape] : shapes) {
    size_t count = 1;
    for (const size_t side : shape) count *= side;
    const size_t begin = values.size();
    for (size_t i = 0; i < count; ++i) {
      state = state * 1103515245U + 12345U;
      const float value =
          shape.size() == 1 ? 1.0F : 0.4F * (static_cast<float>(state >> 8) / 16777216.0F - 0.5F);
      values.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, values.size()}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + values;
}

inline void write_served_folder(const fs::path& folder) {
  constexpr size_t kHidden = 32, kHead = 16, kForward = 64, kVocabulary = 257;
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"model_type", "llama"},
                                 {"bos_token_id", nullptr},
                                 {"eos_token_id", kVocabulary - 1},
                                 {"head_dim", kHead},
                                 {"hidden_act", "silu"},
                                 {"hidden_size", kHidden},
                                 {"intermediate_size", kForward},
                                 {"max_position_embeddings", 200000},
                                 {"num_attention_heads", 2},
                                 {"num_hidden_layers", 1},
                                 {"num_key_value_heads", 1},
                                 {"rms_norm_eps", 1e-6},
                                 {"rope_theta", 1e4},
                                 {"tie_word_embeddings", true},
                                 {"torch_dtype", "float32"},
                                 {"vocab_size", kVocabulary}};
  const std::string layer = "model.layers.0.";
  write_all(folder / "config.json", config.dump());
  write_all(folder / "model.safetensors",
            safetensors_of({{"model.embed_tokens.weight", {kVocabulary, kHidden}},
                            {"model.norm.weight", {kHidden}},
                            {layer + "input_layernorm.weight", {kHidden}},
                            {layer + "post_attention_layernorm.weight", {kHidden}},
                            {layer + "self_attn.q_proj.weight", {2 * kHead, kHidden}},
                            {layer + "self_attn.k_proj.weight", {kHead, kHidden}},
                            {layer + "self_attn.v_proj.weight", {kHead, kHidden}},
                            {layer + "self_attn.o_proj.weight", {kHidden, 2 * kHead}},
                            {layer + "mlp.gate_proj.weight", {kForward, kHidden}},
                            {layer + "mlp.up_proj.weight", {kForward, kHidden}},
                            {layer + "mlp.down_proj.weight", {kHidden, kForward}}}));
  nlohmann::json vocabulary;
  const std::vector<std::string> letters = byte_letters();
  for (size_t byte = 0; byte < letters.size(); ++byte) vocabulary[letters[byte]] = byte;
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", true}};
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens",
       {{{"id", kVocabulary - 1}, {"content", "<|endoftext|>"}, {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}}};
  write_all(folder / "tokenizer.json", tokenizer.dump());
  write_all(folder / "tokenizer_config.json", R"({"eos_token":"<|endoftext|>"})");
}

}  // namespace pelago::testing
