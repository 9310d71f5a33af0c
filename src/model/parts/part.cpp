#include "model/parts/part.h"

#include <algorithm>

#include "base/error.h"

namespace pelago::model {

namespace {

TensorCut cut_of(const std::string& name) {
  const auto ends_with = [&](const char* end) { return name.ends_with(end); };
  for (const char* rows : {"q_proj.weight",
                           "k_proj.weight",
                           "v_proj.weight",
                           "q_proj.bias",
                           "k_proj.bias",
                           "v_proj.bias",
                           "gate_proj.weight",
                           "up_proj.weight"}) {
    if (ends_with(rows)) return TensorCut::kRows;
  }
  if (ends_with("o_proj.weight") || ends_with("down_proj.weight")) return TensorCut::kColumns;
  return TensorCut::kNone;
}

/// "model.layers.12.mlp..." -> 12; -1 outside the blocks.
int64_t block_of(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  return std::stoll(name.substr(kPrefix.size()));
}

bool holds(const ModelConfig& config, const ModelPart& part, const PartSpec& spec) {
  if (spec.block_idx >= 0) {
    return spec.block_idx >= part.first_block && spec.block_idx < part.last_block;
  }
  if (spec.spec_idx == 0) {  // the embedding, which a tied head reads too
    return part.has_embedding() || (part.has_head() && config.tie_word_embeddings);
  }
  return part.has_head();
}

void cut_to_part(const ModelPart& part, PartSpec& spec) {
  std::vector<int64_t>& shape = spec.local.shape;
  const int64_t whole = spec.local.num_values();
  spec.run_length = whole;
  spec.num_runs = 1;
  spec.run_stride = whole;
  if (part.tensor_count == 1 || spec.cut == TensorCut::kNone) return;
  const int64_t count = part.tensor_count;
  if (spec.cut == TensorCut::kRows) {
    shape[0] /= count;
    spec.run_length = whole / count;
    spec.global_begin += part.tensor_idx * spec.run_length;
  } else {
    spec.run_stride = shape[1];
    shape[1] /= count;
    spec.run_length = shape[1];
    spec.num_runs = shape[0];
    spec.global_begin += part.tensor_idx * shape[1];
  }
}

void check_divisible(const ModelConfig& config, const ModelPart& part) {
  const auto check = [&](const char* field, int64_t value) {
    if (value % part.tensor_count == 0) return;
    fail_usage("{} = {} cannot be divided by the {} ranks of a tensor-parallel stage",
               field,
               value,
               part.tensor_count);
  };
  check("num_attention_heads", config.num_attention_heads);
  check("num_key_value_heads", config.num_key_value_heads);
  check("intermediate_size", config.intermediate_size);
}

}  // namespace

ModelPart whole_model(const ModelConfig& config) {
  return {.last_block = config.num_hidden_layers, .num_blocks = config.num_hidden_layers};
}

std::vector<PartSpec> part_specs(const ModelConfig& config, const ModelPart& part) {
  check_divisible(config, part);
  std::vector<PartSpec> held;
  int64_t global_begin = 0, local_begin = 0;
  size_t spec_idx = 0;
  for (ParameterSpec& whole : parameter_specs(config)) {
    PartSpec spec;
    spec.spec_idx = spec_idx++;
    spec.global_begin = global_begin;
    spec.block_idx = block_of(whole.name);
    spec.cut = cut_of(whole.name);
    spec.local = std::move(whole);
    global_begin += spec.local.num_values();
    if (!holds(config, part, spec)) continue;
    cut_to_part(part, spec);
    spec.local_begin = local_begin;
    local_begin += spec.local.num_values();
    held.push_back(std::move(spec));
  }
  return held;
}

int64_t num_values(const std::vector<PartSpec>& specs) {
  return specs.empty() ? 0 : specs.back().local_begin + specs.back().local.num_values();
}

void for_each_run(const std::vector<PartSpec>& specs,
                  int64_t begin,
                  int64_t end,
                  const std::function<void(int64_t, int64_t, int64_t)>& visit) {
  for (const PartSpec& spec : specs) {
    for (int64_t run = 0; run < spec.num_runs; ++run) {
      const int64_t global = spec.global_begin + run * spec.run_stride;
      const int64_t from = std::max(begin, global);
      const int64_t to = std::min(end, global + spec.run_length);
      if (from >= to) continue;
      visit(spec.local_begin + run * spec.run_length + (from - global), from, to - from);
    }
  }
}

}  // namespace pelago::model
