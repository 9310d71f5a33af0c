// Block by block: the inputs of a block's four matrices on the calibration set, the matrices in few
// bits, then the block's outputs with them, so that later blocks see what earlier ones lost.
#include "compress/quantise.h"

#include <map>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"
#include "chips/kernels.h"
#include "chips/torch.h"
#include "compress/levels.h"
#include "data/dataset.h"
#include "model/layers/rope.h"
#include "model/safetensors.h"
#include "model/stored_model.h"
#include "model/transformer.h"

namespace pelago::compress {

namespace {

namespace fs = std::filesystem;
using model::BlockWeights;
using model::ModelConfig;

constexpr int64_t kSequencesAtOnce = 4;

/// Sums of x x^T of what goes into a block's matrices, f64.
struct InputSquares {
  Tensor qkv, output, gate_up, down;
};

void add_squares(Tensor* sum, const Tensor& inputs) {
  if (sum == nullptr) return;
  const Tensor squares = at::mm(inputs.t(), inputs).to(at::kDouble);
  *sum = sum->defined() ? sum->add_(squares) : squares;
}

/// x: [B*T,D], sequences of num_tokens. Returns the block's output; notes its matrices' inputs.
Tensor run_block(const ModelConfig& config,
                 const BlockWeights& weights,
                 model::RopeTable& rope_table,
                 const Tensor& x,
                 int64_t num_tokens,
                 InputSquares* squares) {
  const auto rope = rope_table.rows(0, num_tokens);
  const auto note = [&](Tensor InputSquares::*part, const Tensor& inputs) {
    add_squares(squares == nullptr ? nullptr : &(squares->*part), inputs);
  };
  const int64_t batch = x.size(0) / num_tokens;
  const int64_t query = config.num_attention_heads * config.head_dim;
  const int64_t key = config.num_key_value_heads * config.head_dim;
  const Tensor normed = chips::rms_norm(x, weights.input_norm, config.rms_norm_eps);
  note(&InputSquares::qkv, normed);
  Tensor qkv = at::mm(normed, weights.qkv.t());
  if (weights.qkv_bias.defined()) qkv = qkv + weights.qkv_bias;
  const std::vector<Tensor> parts = qkv.split_with_sizes({query, key, key}, 1);
  const auto heads = [&](const Tensor& part) {
    return part.reshape({batch, num_tokens, -1, config.head_dim});
  };
  Tensor q = heads(parts[0]), k = heads(parts[1]);
  if (config.qk_norm) {
    q = chips::rms_norm(q, weights.q_norm, config.rms_norm_eps);
    k = chips::rms_norm(k, weights.k_norm, config.rms_norm_eps);
  }
  q = chips::apply_rope(q, rope.cos, rope.sin);
  k = chips::apply_rope(k, rope.cos, rope.sin);
  const Tensor mixed = chips::attention(q, k, heads(parts[2])).reshape({x.size(0), query});
  note(&InputSquares::output, mixed);
  const Tensor attended = x + at::mm(mixed, weights.output.t());
  const Tensor fed = chips::rms_norm(attended, weights.post_attention_norm, config.rms_norm_eps);
  note(&InputSquares::gate_up, fed);
  const Tensor inner = chips::swiglu(at::mm(fed, weights.gate_up.t()));
  note(&InputSquares::down, inner);
  return attended + at::mm(inner, weights.down.t());
}

/// One folder on its way.
class Quantiser {
 public:
  Quantiser(const fs::path& folder, const QuantiseOptions& options)
      : folder_(folder),
        options_(options),
        loaded_(load(folder)),
        parameters_(loaded_.config, loaded_.flat),
        rope_(loaded_.config, at::kCPU) {
    check_groups();
  }

  double loss_on(const Tensor& tokens) const {
    const model::Transformer transformer(loaded_.config, parameters_);
    double sum = 0;
    for (const Tensor& part : tokens.split(kSequencesAtOnce)) {
      const int64_t num_inputs = part.size(1) - 1;
      sum += transformer
                 .loss_sum(part.narrow(1, 0, num_inputs).contiguous(),
                           part.narrow(1, 1, num_inputs).contiguous())
                 .item<double>();
    }
    return sum / static_cast<double>(tokens.size(0) * (tokens.size(1) - 1));
  }

  void run(const Tensor& calibration, const std::function<void(int64_t, int64_t)>& progress) {
    std::vector<Tensor> streams;  // of the calibration set, in parts [B*T,D]
    if (options_.method == Method::kGptq) {
      for (const Tensor& part : calibration.split(kSequencesAtOnce)) {
        streams.push_back(parameters_.embed(part.reshape({-1})));
      }
    }
    const auto num_blocks = static_cast<int64_t>(parameters_.blocks().size());
    for (int64_t block_idx = 0; block_idx < num_blocks; ++block_idx) {
      const BlockWeights& weights = parameters_.blocks()[static_cast<size_t>(block_idx)];
      InputSquares squares;
      for (const Tensor& stream : streams) {
        run_block(loaded_.config, weights, rope_, stream, calibration.size(1), &squares);
      }
      const std::string prefix = fmt::format("model.layers.{}.", block_idx);
      take(weights.qkv,
           squares.qkv,
           prefix + "self_attn.",
           {"q_proj.weight", "k_proj.weight", "v_proj.weight"});
      take(weights.output, squares.output, prefix + "self_attn.", {"o_proj.weight"});
      take(weights.gate_up,
           squares.gate_up,
           prefix + "mlp.",
           {"gate_proj.weight", "up_proj.weight"});
      take(weights.down, squares.down, prefix + "mlp.", {"down_proj.weight"});
      for (Tensor& stream : streams) {
        stream = run_block(loaded_.config, weights, rope_, stream, calibration.size(1), nullptr);
      }
      if (progress) progress(block_idx + 1, num_blocks);
    }
  }

  void write(const fs::path& out, QuantiseReport& report) const {
    const model::StoredModel stored(folder_);
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const model::ParameterSpec& spec : parameter_specs(loaded_.config)) {
      const Tensor& before = stored.parameter(spec.name).numbers;
      report.bytes_before += static_cast<int64_t>(before.nbytes());
      const auto found = matrices_.find(spec.name);
      if (found == matrices_.end()) {
        tensors.emplace_back(spec.name, before);
        continue;
      }
      const QuantisedMatrix& matrix = found->second;
      tensors.emplace_back(spec.name + model::kPackedSuffix,
                           pack_levels(matrix.levels, options_.format.bits));
      tensors.emplace_back(spec.name + model::kScaleSuffix, matrix.scales);
      tensors.emplace_back(spec.name + model::kShapeSuffix,
                           at::tensor(at::ArrayRef<int64_t>(spec.shape)));
    }
    for (const auto& [name, tensor] : tensors) {
      report.bytes_after += static_cast<int64_t>(tensor.nbytes());
    }
    const Status status =
        model::try_write_safetensors(out / "model.safetensors", tensors, {{"format", "pt"}});
    if (!status) throw Failure(status.error().message);
    write_file(out / "config.json",
               model::with_quantisation(read_text_file(folder_ / "config.json"), options_.format));
    for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
      if (fs::exists(folder_ / name)) write_file(out / name, read_text_file(folder_ / name));
    }
    report.num_matrices = static_cast<int64_t>(matrices_.size());
    report.relative_error = std::sqrt(error_squared_ / weight_squared_);
  }

 private:
  static model::LoadedModel load(const fs::path& folder) {
    if (fs::exists(folder / "config.json") && model::read_quantisation(folder / "config.json")) {
      fail_usage("{}: the model is quantised already; quantise the plain one it was made from",
                 folder.string());
    }
    return model::load_model_folder(folder);
  }

  void check_groups() const {
    const ModelConfig& config = loaded_.config;
    for (const auto& [name, inputs] :
         {std::pair{"hidden_size", config.hidden_size},
          std::pair{"num_attention_heads * head_dim", config.num_attention_heads * config.head_dim},
          std::pair{"intermediate_size", config.intermediate_size}}) {
      if (inputs % options_.format.group_size == 0) continue;
      int64_t fits = 128;
      while (fits >= 32 && inputs % fits != 0) fits /= 2;
      fail_usage("--group {}: it does not divide the model's {} = {}; {}",
                 options_.format.group_size,
                 name,
                 inputs,
                 fits >= 32 ? fmt::format("take --group {}", fits)
                            : std::string("the model cannot be quantised by groups"));
    }
  }

  /// Rounds a matrix in place, f32 [Out,In], and keeps its levels under the names of its rows'
  /// parts.
  void take(const Tensor& weight,
            const Tensor& inputs_squared,
            const std::string& prefix,
            const std::vector<std::string>& names) {
    const QuantisedMatrix whole =
        options_.method == Method::kGptq
            ? gptq(weight.detach(), inputs_squared, options_.format, options_.damping)
            : round_to_nearest(weight.detach(), options_.format);
    error_squared_ += (whole.numbers - weight).square().sum().item<double>();
    weight_squared_ += weight.square().sum().item<double>();
    weight.detach().copy_(whole.numbers);
    int64_t begin = 0;
    for (const std::string& name : names) {
      const int64_t num_rows = parameters_.at(prefix + name).size(0);
      matrices_[prefix + name] = {.levels = whole.levels.narrow(0, begin, num_rows),
                                  .scales = whole.scales.narrow(0, begin, num_rows),
                                  .numbers = Tensor()};
      begin += num_rows;
    }
  }

  fs::path folder_;
  QuantiseOptions options_;
  model::LoadedModel loaded_;
  model::Parameters parameters_;  // over loaded_.flat
  model::RopeTable rope_;
  std::map<std::string, QuantisedMatrix> matrices_;
  double error_squared_ = 0, weight_squared_ = 0;
};

}  // namespace

Tensor read_windows(const fs::path& dataset,
                    const std::string& split,
                    int64_t vocab_size,
                    int64_t num_sequences,
                    int64_t num_tokens) {
  const data::TokenStream stream(dataset, split, /*verify=*/false);
  if (stream.vocab_size() > vocab_size) {
    fail_usage("{}: its tokenizer has {} tokens, the model {}: take the dataset's own model",
               dataset.string(),
               stream.vocab_size(),
               vocab_size);
  }
  const int64_t num_windows = stream.num_tokens() / num_tokens;
  if (num_windows == 0) {
    fail("{}: its {} split has {} tokens, too few for a sequence of {}",
         dataset.string(),
         split,
         stream.num_tokens(),
         num_tokens);
  }
  const int64_t taken = std::min(num_sequences, num_windows);
  const data::SampleOrder order(num_windows, /*seed=*/1);
  const Tensor windows = at::empty({taken, num_tokens}, at::kLong);
  for (int64_t i = 0; i < taken; ++i) {
    stream.read(order.sequence_of(i) * num_tokens,
                {windows.data_ptr<int64_t>() + i * num_tokens, static_cast<size_t>(num_tokens)});
  }
  return windows;
}

QuantiseReport quantise_folder(const fs::path& folder,
                               const fs::path& out,
                               const QuantiseOptions& options,
                               const Tensor& calibration,
                               const Tensor& evaluation,
                               const std::function<void(int64_t, int64_t)>& progress) {
  PELAGO_ASSERT(options.method != Method::kGptq || calibration.defined(),
                "GPTQ comes with a calibration set");
  const torch::NoGradGuard no_grad;
  Quantiser quantiser(folder, options);
  QuantiseReport report;
  if (evaluation.defined()) report.loss_before = quantiser.loss_on(evaluation);
  quantiser.run(calibration, progress);
  if (evaluation.defined()) report.loss_after = quantiser.loss_on(evaluation);
  quantiser.write(out, report);
  return report;
}

}  // namespace pelago::compress
