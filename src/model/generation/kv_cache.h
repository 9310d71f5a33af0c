#pragma once

#include <vector>

#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"

namespace pelago::model {

/// Keys and values of what was already read, for generation. Grows by doubling.
class KvCache {
 public:
  KvCache(const ModelConfig& config, int64_t batch, c10::Device device, c10::ScalarType dtype);
  int64_t num_tokens() const { return num_tokens_; }

  struct KeysValues {
    Tensor keys, values;  // [B,T_all,K,E]
  };
  /// Appends a layer's keys and values [B,T_new,K,E]; returns all there are. Once every layer has
  /// them, advance(T_new).
  KeysValues append(int64_t layer_idx, const Tensor& keys, const Tensor& values);
  void advance(int64_t num_new) { num_tokens_ += num_new; }

 private:
  std::vector<Tensor> keys_, values_;  // a layer: [B,T_max,K,E]
  int64_t num_tokens_ = 0;
};

}  // namespace pelago::model
