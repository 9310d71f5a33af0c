#include "model/generation/kv_cache.h"

#include <algorithm>

namespace pelago::model {

KvCache::KvCache(const ModelConfig& config,
                 int64_t batch,
                 c10::Device device,
                 c10::ScalarType dtype) {
  constexpr int64_t kFirstTokens = 64;
  const std::vector<int64_t> shape = {
      batch, kFirstTokens, config.num_key_value_heads, config.head_dim};
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    keys_.push_back(at::empty(shape, options));
    values_.push_back(at::empty(shape, options));
  }
}

KvCache::KeysValues KvCache::append(int64_t layer_idx, const Tensor& keys, const Tensor& values) {
  const int64_t num_new = keys.size(1);
  const int64_t num_all = num_tokens_ + num_new;
  const auto put = [&](Tensor& kept, const Tensor& fresh) {
    if (kept.size(1) < num_all) {
      std::vector<int64_t> shape = kept.sizes().vec();
      shape[1] = std::max(num_all, 2 * shape[1]);
      const Tensor grown = at::empty(shape, kept.options());
      grown.narrow(1, 0, num_tokens_).copy_(kept.narrow(1, 0, num_tokens_));
      kept = grown;
    }
    kept.narrow(1, num_tokens_, num_new).copy_(fresh);
    return kept.narrow(1, 0, num_all);
  };
  const auto layer = static_cast<size_t>(layer_idx);
  return {put(keys_[layer], keys), put(values_[layer], values)};
}

}  // namespace pelago::model
