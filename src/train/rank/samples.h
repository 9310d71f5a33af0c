// From a long stream of tokens to the batches that a rank trains on. A stream is cut into windows
// of T+1 tokens that begin every T tokens: window i feeds tokens [i*T, i*T+T) and asks for [i*T+1,
// i*T+T+1), so each token but the first is a target once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chips/tensor.h"
#include "data/dataset.h"

namespace pelago::train {

/// Where tokens come from: a split of a dataset, or made-up tokens for a probe or a test.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual int64_t num_tokens() const = 0;
  /// Copies tokens [begin, begin + out.size()), a range inside the source.
  virtual void read(int64_t begin, std::span<int64_t> out) const = 0;
};

class StreamSource final : public TokenSource {
 public:
  explicit StreamSource(const data::TokenStream& stream) : stream_(&stream) {}
  int64_t num_tokens() const override { return stream_->num_tokens(); }
  void read(int64_t begin, std::span<int64_t> out) const override { stream_->read(begin, out); }

 private:
  const data::TokenStream* stream_;  // outlives this
};

class MemorySource final : public TokenSource {
 public:
  explicit MemorySource(std::vector<int64_t> tokens) : tokens_(std::move(tokens)) {}
  int64_t num_tokens() const override { return static_cast<int64_t>(tokens_.size()); }
  void read(int64_t begin, std::span<int64_t> out) const override;

 private:
  std::vector<int64_t> tokens_;
};

/// Whole windows of sequence_length targets in a source.
int64_t num_windows(const TokenSource& source, int64_t sequence_length);

struct Batch {
  Tensor tokens;   // [B,T] int64, CPU
  Tensor targets;  // [B,T] int64, CPU
};
Batch read_windows(const TokenSource& source,
                   int64_t sequence_length,
                   std::span<const int64_t> windows);

}  // namespace pelago::train
