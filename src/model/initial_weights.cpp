// Fresh weights that are the same bits on every machine. Box-Muller would go through the C
// library's log and cos, whose last bit differs between versions and processors, and sites compare
// hashes of their weights. A sum of 12 uniform 16-bit integers has a normal shape (Irwin-Hall:
// variance 12 x (2^16)^2 / 12, tails cut at 6 deviations), and integers are exact everywhere.
#include <cmath>

#include "base/error.h"
#include "model/transformer.h"

namespace pelago::model {

namespace {

/// Mean 0, deviation 1, a multiple of 2^-16.
double next_bell(Rng& rng) {
  int64_t sum = 0;
  for (int draw = 0; draw < 3; ++draw) {
    const uint64_t bits = rng.next_u64();
    for (int shift = 0; shift < 64; shift += 16) {
      sum += static_cast<int64_t>((bits >> shift) & 0xffff);
    }
  }
  constexpr int64_t kMeanSum = 12 * 0xffff / 2;
  return static_cast<double>(sum - kMeanSum) * 0x1.0p-16;
}

void fill_normal(Tensor view, double deviation, const Rng& rng) {
  float* values = view.data_ptr<float>();
  // A generator for each block of values: how many threads share the work changes nothing.
  constexpr int64_t kBlockValues = 4096;
  const int64_t num_values = view.numel();
  const int64_t num_blocks = (num_values + kBlockValues - 1) / kBlockValues;
  at::parallel_for(0, num_blocks, 16, [&](int64_t first, int64_t last) {
    for (int64_t block_idx = first; block_idx < last; ++block_idx) {
      Rng block_rng = rng.fork("block", static_cast<uint64_t>(block_idx));
      const int64_t end = std::min(num_values, (block_idx + 1) * kBlockValues);
      for (int64_t idx = block_idx * kBlockValues; idx < end; ++idx) {
        values[idx] = static_cast<float>(deviation * next_bell(block_rng));
      }
    }
  });
}

}  // namespace

Tensor initial_weights(const ModelConfig& config, const Rng& rng) {
  config.validate();
  const Rng init_rng = rng.fork("init");
  const Tensor flat = at::zeros({config.num_parameters()}, at::kFloat);
  const double residual_scale =
      1.0 / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
  int64_t begin = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    Tensor view = flat.narrow(0, begin, spec.num_values());
    begin += spec.num_values();
    if (spec.decays) {
      const bool feeds_residual =
          spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
      const double deviation = config.initializer_range * (feeds_residual ? residual_scale : 1.0);
      fill_normal(view, deviation, init_rng.fork(spec.name));
    } else if (spec.name.ends_with("norm.weight")) {
      view.fill_(1.0);
    }
  }
  return flat;
}

}  // namespace pelago::model
