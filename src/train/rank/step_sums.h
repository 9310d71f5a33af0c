// One f64 vector that goes over the ranks once a step: totals are added up, and every rank writes
// its report to a place of its own, where adding the others' zeros turns the sum into a gathering.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "train/messages.h"

namespace pelago::train {

class StepSums {
 public:
  explicit StepSums(size_t num_ranks) : values_(kTotals + kFields * num_ranks) {}

  std::span<double> values() { return values_; }
  void add_loss(double nats) { values_[0] += nats; }
  void add_squares(double squares) { values_[1] += squares; }
  double loss() const { return values_[0]; }     // of all tokens
  double squares() const { return values_[1]; }  // of the gradient; NaN or inf if a value is
  int64_t tokens() const { return static_cast<int64_t>(values_[2]); }

  void put(size_t rank, const RankReport& report) {
    double* place = values_.data() + kTotals + kFields * rank;
    values_[2] = static_cast<double>(report.tokens);
    place[0] = static_cast<double>(report.tokens);
    place[1] = report.compute_s;
    place[2] = report.wait_ranks_s;
    place[3] = report.late_s;
    place[4] = report.host_busy_s;
    place[5] = static_cast<double>(report.peak_memory_bytes);
    place[6] = report.wait_stages_s;
    place[7] = report.parts.forward_s;
    place[8] = report.parts.backward_s;
    place[9] = report.parts.bubble_s;
    place[10] = report.parts.reduce_s;
    place[11] = report.parts.optimizer_s;
  }
  RankReport get(size_t rank, const std::string& device) const {
    const double* place = values_.data() + kTotals + kFields * rank;
    return {.device = device,
            .tokens = static_cast<int64_t>(place[0]),
            .compute_s = place[1],
            .wait_stages_s = place[6],
            .wait_ranks_s = place[2],
            .late_s = place[3],
            .host_busy_s = place[4],
            .peak_memory_bytes = static_cast<int64_t>(place[5]),
            .parts = {place[7], place[8], place[9], place[10], place[11]}};
  }

 private:
  static constexpr size_t kTotals = 3;  // loss, squares, tokens
  static constexpr size_t kFields = 12;
  std::vector<double> values_;
};

}  // namespace pelago::train
