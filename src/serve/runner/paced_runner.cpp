#include "serve/runner/paced_runner.h"

#include <algorithm>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

namespace pelago::serve {

PacedRunner::PacedRunner(std::unique_ptr<ModelRunner> inner, const Pace& pace)
    : inner_(std::move(inner)), pace_(pace) {
  if (!(pace.slowdown > 0)) fail_usage("slowdown is {}: it must be above 0", pace.slowdown);
}

RunnerOutput PacedRunner::forward(std::span<const SequenceChunk> chunks) {
  std::vector<plan::PassChunk> charged;
  double logit_rows = 0;
  for (const SequenceChunk& chunk : chunks) {
    const auto num_tokens = static_cast<double>(chunk.tokens.size());
    charged.push_back({num_tokens, static_cast<double>(chunk.first_position)});
    if (chunk.wanted == Wanted::kLastLogits) logit_rows += 1;
    if (chunk.wanted == Wanted::kAllLogits) logit_rows += num_tokens;
  }
  const double cost_s =
      pace_.slowdown * plan::pass_time(pace_.model, pace_.rates, charged, logit_rows);
  const double begin_s = steady_now_s();
  const RunnerOutput output = inner_->forward(chunks);
  stats_.charged_s += cost_s;
  stats_.late_s += std::max(steady_now_s() - begin_s - cost_s, 0.0);
  constexpr double kSeconds = 5, kLateShareMax = 0.1;
  if (!has_warned_ && stats_.charged_s + stats_.late_s > kSeconds &&
      stats_.late_s > kLateShareMax * stats_.charged_s) {
    has_warned_ = true;
    log_warn(
        "host is too slow for the emulated chip late_s={:.1f} charged_s={:.1f} remedy=\"raise "
        "the slowdown, now {}\"",
        stats_.late_s,
        stats_.charged_s,
        pace_.slowdown);
  }
  // The chip ends its layers one after another, and each is told of when it would be there.
  const int64_t num_layers = layer_watch_ ? inner_->num_layers() : 0;
  for (int64_t layer_idx = 0; layer_idx < num_layers; ++layer_idx) {
    const auto done = static_cast<double>(layer_idx + 1) / static_cast<double>(num_layers);
    sleep_until_s(begin_s + done * cost_s);
    layer_watch_(layer_idx);
  }
  sleep_until_s(begin_s + cost_s);
  return output;
}

}  // namespace pelago::serve
