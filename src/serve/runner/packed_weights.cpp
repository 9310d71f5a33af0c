#include "serve/runner/packed_weights.h"

#include <cstring>
#include <optional>
#include <string>

#include "base/error.h"
#include "chips/torch.h"
#include "model/stored_model.h"
#include "serve/runner/shared_weights.h"

namespace pelago::serve {

namespace {

using chips::packed::CoreTeam;
using chips::packed::Format;
using chips::packed::LargeMemory;
using chips::packed::PackedMatrix;
using chips::packed::StoredRows;

StoredRows rows_of(const Tensor& numbers) {
  StoredRows rows{.data = numbers.data_ptr(), .num_rows = numbers.size(0)};
  switch (numbers.scalar_type()) {
    case at::kFloat:
      rows.dtype = StoredRows::Dtype::kF32;
      break;
    case at::kBFloat16:
      rows.dtype = StoredRows::Dtype::kBf16;
      break;
    default:
      rows.dtype = StoredRows::Dtype::kF16;
  }
  return rows;
}

/// Packs one model, matrix by matrix.
class Packer {
 public:
  Packer(const std::filesystem::path& folder, const RunnerOptions& options, CoreTeam& team)
      : folder_(folder), stored_(folder), team_(team) {
    group_size_ = options.group_size;
    format_ = format_of(options.weights);
    if (!options.shared_weights.empty()) {
      shared_ = SharedWeights::open(options.shared_weights, options.weights_key);
    }
  }

  PackedWeights pack() {
    const model::ModelConfig& config = stored_.config();
    PackedWeights weights;
    weights.config = config;
    for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
      weights.layers.push_back(pack_layer(fmt::format("model.layers.{}.", layer_idx)));
    }
    weights.final_norm = vector("model.norm.weight");
    // Levels of 4 bits cost most in the head, whose errors nothing behind it can mend.
    const Format head_format = chips::packed::is_quantised(format_) ? Format::kInt8 : format_;
    const char* const head_name =
        config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    weights.head = matrix(head_format, {head_name}, config.hidden_size, 1);
    pack_embedding(weights);
    if (shared_ != nullptr) shared_->finish();
    return weights;
  }

 private:
  Format format_of(WeightDtype wanted) {
    switch (wanted) {
      case WeightDtype::kF32:
        return Format::kF32;
      case WeightDtype::kBf16:
        return Format::kBf16;
      case WeightDtype::kInt8:
        return Format::kInt8;
      case WeightDtype::kInt4:
        return Format::kInt4;
      case WeightDtype::kAsStored:
        break;
    }
    if (stored_.quantisation()) {
      group_size_ = stored_.quantisation()->group_size;
      return stored_.quantisation()->bits == 8 ? Format::kInt8 : Format::kInt4;
    }
    const auto& first = stored_.parameter("model.layers.0.self_attn.q_proj.weight");
    return first.numbers.scalar_type() == at::kFloat ? Format::kF32 : Format::kBf16;
  }

  PackedLayer pack_layer(const std::string& prefix) {
    const model::ModelConfig& config = stored_.config();
    const std::string attention = prefix + "self_attn.";
    PackedLayer layer;
    layer.qkv = matrix(
        format_,
        {attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"},
        config.hidden_size,
        1);
    layer.output = matrix(
        format_, {attention + "o_proj.weight"}, config.num_attention_heads * config.head_dim, 1);
    layer.gate_up = matrix(format_,
                           {prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight"},
                           config.hidden_size,
                           2);
    layer.down = matrix(format_, {prefix + "mlp.down_proj.weight"}, config.intermediate_size, 1);
    if (config.attention_bias) {
      for (const char* name : {"q_proj.bias", "k_proj.bias", "v_proj.bias"}) {
        const std::vector<float> part = vector(attention + name);
        layer.qkv_bias.insert(layer.qkv_bias.end(), part.begin(), part.end());
      }
    }
    if (config.qk_norm) {
      layer.q_norm = vector(attention + "q_norm.weight");
      layer.k_norm = vector(attention + "k_norm.weight");
    }
    layer.input_norm = vector(prefix + "input_layernorm.weight");
    layer.post_attention_norm = vector(prefix + "post_attention_layernorm.weight");
    return layer;
  }

  std::vector<float> vector(const std::string& name) const {
    const Tensor values = stored_.parameter(name).numbers.to(at::kFloat).contiguous();
    const float* data = values.data_ptr<float>();
    return {data, data + values.numel()};
  }

  /// One matrix of several, one below the other, or panel by panel in turn.
  PackedMatrix matrix(Format format,
                      const std::vector<std::string>& names,
                      int64_t num_inputs,
                      int64_t panel_stride) {
    if (chips::packed::is_quantised(format) && num_inputs % group_size_ != 0) {
      fail_usage(
          "{}: groups of {} do not divide the {} inputs of {}: choose a group of 32, 64 or 128 "
          "that does, or weights of bf16",
          folder_.string(),
          group_size_,
          num_inputs,
          names.front());
    }
    const auto panel = static_cast<int64_t>(chips::packed::kPanel);
    int64_t num_outputs = 0;
    for (const std::string& name : names) {
      const int64_t rows = num_rows(name);
      num_outputs += panel_stride == 1 ? rows : (rows + panel - 1) / panel * panel;
    }
    PackedMatrix packed(format, num_outputs, num_inputs, group_size_, [this](size_t num_bytes) {
      return take(num_bytes);
    });
    if (is_there()) return packed;
    int64_t first = 0;
    for (const std::string& name : names) {
      fill(packed, stored_.parameter(name), first, panel_stride);
      first += panel_stride == 1 ? num_rows(name) : panel;
    }
    return packed;
  }

  /// Another process has packed all of it.
  bool is_there() const { return shared_ != nullptr && shared_->is_packed(); }
  LargeMemory take(size_t num_bytes) {
    return shared_ != nullptr ? shared_->take(num_bytes) : LargeMemory(num_bytes);
  }

  int64_t num_rows(const std::string& name) const {
    const model::StoredParameter& parameter = stored_.parameter(name);
    return (parameter.numbers.defined() ? parameter.numbers : parameter.packed).size(0);
  }

  void fill(PackedMatrix& packed,
            const model::StoredParameter& parameter,
            int64_t first,
            int64_t panel_stride) {
    const auto& quantisation = stored_.quantisation();
    const bool same_levels =
        !parameter.numbers.defined() &&
        packed.format() == (quantisation->bits == 8 ? Format::kInt8 : Format::kInt4) &&
        packed.group_size() == quantisation->group_size;
    if (!same_levels) {
      const Tensor numbers = parameter.numbers.defined()
                                 ? parameter.numbers
                                 : model::to_numbers(parameter, quantisation);
      packed.fill(rows_of(numbers), first, panel_stride, team_);
      return;
    }
    const Tensor scales = parameter.scales.to(at::kHalf).contiguous();
    packed.fill({.dtype = StoredRows::Dtype::kLevels,
                 .data = parameter.packed.data_ptr(),
                 .scales = static_cast<const uint16_t*>(scales.data_ptr()),
                 .num_rows = parameter.packed.size(0)},
                first,
                panel_stride,
                team_);
  }

  void pack_embedding(PackedWeights& weights) {
    const model::StoredParameter& parameter = stored_.parameter("model.embed_tokens.weight");
    weights.embedding_is_f32 = format_ == Format::kF32;
    const auto dtype = weights.embedding_is_f32 ? at::kFloat : at::kBFloat16;
    const model::ModelConfig& config = stored_.config();
    weights.embedding =
        take(static_cast<size_t>(config.vocab_size * config.hidden_size) * c10::elementSize(dtype));
    if (is_there()) return;
    const Tensor rows =
        (parameter.numbers.defined() ? parameter.numbers
                                     : model::to_numbers(parameter, stored_.quantisation()))
            .to(dtype)
            .contiguous();
    PELAGO_ASSERT(rows.nbytes() == weights.embedding.num_bytes(), "the embedding is [V,D]");
    std::memcpy(weights.embedding.data(), rows.data_ptr(), rows.nbytes());
  }

  std::filesystem::path folder_;
  model::StoredModel stored_;
  CoreTeam& team_;
  std::unique_ptr<SharedWeights> shared_;  // null: memory of this process alone
  Format format_ = Format::kF32;
  int64_t group_size_ = 64;
};

}  // namespace

size_t PackedWeights::embedding_row_bytes() const {
  return static_cast<size_t>(config.hidden_size) * (embedding_is_f32 ? 4 : 2);
}

size_t PackedWeights::num_bytes() const {
  size_t sum = head.num_bytes();
  for (const PackedLayer& layer : layers) {
    sum += layer.qkv.num_bytes() + layer.output.num_bytes() + layer.gate_up.num_bytes() +
           layer.down.num_bytes();
  }
  return sum;
}

PackedWeights pack_weights(const std::filesystem::path& folder,
                           const RunnerOptions& options,
                           CoreTeam& team) {
  return Packer(folder, options, team).pack();
}

}  // namespace pelago::serve
