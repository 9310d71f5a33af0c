// A runner at the pace of another chip: the pass is computed for real by the runner inside, and
// then is not over before that chip would have been done with it. So engines on emulated chips
// schedule, preempt and send as they would on the real ones.
//
// What is charged is the roofline of a model of any size (plan/serving), usually a far larger one
// than is computed: a host of two cores cannot keep the pace of two accelerators with the whole
// model. The slowdown stretches all times until it can; late_s says whether it could.
#pragma once

#include <memory>

#include "plan/serving/serving_plan.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {

struct Pace {
  plan::ModelSizes model;   // whose passes are charged
  plan::DeviceRates rates;  // of the chip
  double slowdown = 1;      // above 0; times the chip's seconds
};

struct PaceStats {
  double charged_s = 0;  // slowdown included
  double late_s = 0;     // of it, what the host took longer
};

class PacedRunner final : public ModelRunner {
 public:
  PacedRunner(std::unique_ptr<ModelRunner> inner, const Pace& pace);

  RunnerOutput forward(std::span<const SequenceChunk> chunks) override;
  void copy_page(int32_t from, int32_t to) override { inner_->copy_page(from, to); }
  std::span<std::byte> page(int32_t page_idx) override { return inner_->page(page_idx); }
  void read_layer(int32_t page_idx, int64_t layer_idx, std::span<std::byte> to) override {
    inner_->read_layer(page_idx, layer_idx, to);
  }
  void write_layer(int32_t page_idx, int64_t layer_idx, std::span<const std::byte> from) override {
    inner_->write_layer(page_idx, layer_idx, from);
  }
  int64_t num_layers() const override { return inner_->num_layers(); }
  int64_t num_pages() const override { return inner_->num_pages(); }
  int64_t page_tokens() const override { return inner_->page_tokens(); }
  int64_t bytes_per_page() const override { return inner_->bytes_per_page(); }
  int64_t vocab_size() const override { return inner_->vocab_size(); }
  int64_t hidden_size() const override { return inner_->hidden_size(); }
  int64_t context_length() const override { return inner_->context_length(); }
  int64_t max_batch_tokens() const override { return inner_->max_batch_tokens(); }
  int64_t weight_bytes() const override { return inner_->weight_bytes(); }

  /// Of the thread that calls forward().
  const PaceStats& stats() const { return stats_; }

 private:
  const std::unique_ptr<ModelRunner> inner_;
  const Pace pace_;
  PaceStats stats_;
  bool has_warned_ = false;
};

}  // namespace pelago::serve
