#include "plan/serving/serving_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "plan/cost/device/profile.h"

namespace pelago::plan {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr double kValueBytes = 2;
constexpr double kLaunchS = 2e-6;  // as an emulated chip is charged
// What decoding reaches of a real memory's bandwidth: published engines' best and worst.
constexpr chips::Interval kBandwidthShare{0.5, 0.8};
constexpr double kLeastGain = 1e-6;

/// Seconds a request.
struct Phases {
  double prefill_s = kNever, decode_s = kNever, both_s = kNever;
};

double prefill_time(const ModelSizes& sizes, const DeviceRates& rates, const ServingLoad& load) {
  double seconds = 0;
  for (double read = 0; read < load.prompt_tokens; read += load.step_tokens) {
    const PassChunk chunk = {std::min(load.step_tokens, load.prompt_tokens - read), read};
    seconds += pass_time(sizes, rates, std::span(&chunk, 1), 0);
  }
  return seconds;
}

/// Of a pass in which so many answers get a token and so many tokens of a prompt are read.
double mixed_time(const ModelSizes& sizes,
                  const DeviceRates& rates,
                  const ServingLoad& load,
                  double answers,
                  double prompt_tokens) {
  std::vector<PassChunk> chunks(static_cast<size_t>(std::max(1.0, std::floor(answers))),
                                {1, load.prompt_tokens + load.answer_tokens / 2});
  if (prompt_tokens > 0) chunks.push_back({prompt_tokens, load.prompt_tokens / 2});
  return pass_time(sizes, rates, chunks, answers);
}

Phases phases_of(const model::ModelConfig& config,
                 const ServingKind& kind,
                 const ServingLoad& load,
                 const DeviceRates& rates) {
  const ModelSizes sizes = sizes_of(config, 1);
  const chips::Chip& chip = *kind.chip;
  const double memory =
      (chip.usable_memory_gib > 0 ? chip.usable_memory_gib : 0.94 * chip.memory_gib) * kGib;
  const double left = memory - kValueBytes * static_cast<double>(config.num_parameters());
  const double sequence_bytes = kv_bytes_token(config) * (load.prompt_tokens + load.answer_tokens);
  const double answers = std::min(std::floor(left / sequence_bytes), load.sequences_max);
  Phases phases;
  if (answers < 1) return phases;
  phases.prefill_s = prefill_time(sizes, rates, load);
  phases.decode_s =
      load.answer_tokens / answers * mixed_time(sizes, rates, load, answers, /*prompt_tokens=*/0);
  // Every answer that ends makes room for a prompt, and a pass holds only so many tokens.
  const double prompt_ratio = load.prompt_tokens / load.answer_tokens;
  const double together = std::max(1.0, std::min(answers, load.step_tokens / (1 + prompt_ratio)));
  phases.both_s = load.answer_tokens / together *
                  mixed_time(sizes, rates, load, together, together * prompt_ratio);
  return phases;
}

/// Requests a second of the kind's whole time.
double whole_rate(double left, const Phases& phases) {
  return std::isfinite(phases.both_s) ? left / phases.both_s : 0;
}

struct Trade {
  size_t from = 0, to = 0;  // reads, writes
  double gain = 0;          // requests, of one that is moved
};

Trade best_trade(std::span<const Phases> phases, std::span<const double> left) {
  Trade best;
  for (size_t from = 0; from < phases.size(); ++from) {
    for (size_t to = 0; to < phases.size(); ++to) {
      if (from == to || left[from] <= 0 || left[to] <= 0) continue;
      // What both could have served whole in the time that this takes them.
      const double gain = 1 - whole_rate(phases[from].prefill_s, phases[from]) -
                          whole_rate(phases[to].decode_s, phases[to]);
      if (std::isfinite(gain) && gain > best.gain) best = {from, to, gain};
    }
  }
  return best;
}

/// Requests a second of the flows, whose shares stay, with these phases.
double rate_of(std::span<const ServingFlow> flows,
               std::span<const ServingKind> kinds,
               std::span<const Phases> phases) {
  double rate = kNever;
  for (size_t idx = 0; idx < kinds.size(); ++idx) {
    double seconds = 0;
    for (const ServingFlow& flow : flows) {
      const bool reads = flow.prefill_idx == idx, writes = flow.decode_idx == idx;
      if (reads && writes) {
        seconds += flow.share * phases[idx].both_s;
      } else if (reads || writes) {
        seconds += flow.share * (reads ? phases[idx].prefill_s : phases[idx].decode_s);
      }
    }
    if (seconds > 0) rate = std::min(rate, kinds[idx].count / seconds);
  }
  return rate;
}

struct Draw {
  std::vector<Phases> slow, middle, fast;
};

Draw draw_phases(const model::ModelConfig& config,
                 std::span<const ServingKind> kinds,
                 const ServingLoad& load) {
  Draw draw;
  for (const ServingKind& kind : kinds) {
    const DeviceRates rates = serving_rates(*kind.chip);
    const auto with = [&](double pace_ratio, double bandwidth_share) {
      DeviceRates drawn = rates;
      drawn.flop_s /= kind.is_emulated ? 1 : pace_ratio;
      drawn.bytes_s *= kind.is_emulated ? 1 : bandwidth_share;
      return phases_of(config, kind, load, drawn);
    };
    const chips::Interval pace = pace_ratios(*kind.chip);
    draw.slow.push_back(with(pace.hi, kBandwidthShare.lo));
    draw.middle.push_back(with(1, kBandwidthShare.middle()));
    draw.fast.push_back(with(pace.lo, kBandwidthShare.hi));
  }
  return draw;
}

}  // namespace

double kv_bytes_token(const model::ModelConfig& config) {
  return kValueBytes * 2 *
         static_cast<double>(config.num_hidden_layers * config.num_key_value_heads *
                             config.head_dim);
}

DeviceRates serving_rates(const chips::Chip& chip) {
  const char* missing = chip.training_gemm_tflops() <= 0 ? "bf16 or fp16 rate"
                        : chip.memory_gb_s <= 0          ? "memory bandwidth"
                        : chip.memory_gib <= 0           ? "memory size"
                                                         : nullptr;
  if (missing != nullptr) {
    fail_usage("{} cannot be planned for: the catalogue knows no {} of it", chip.id, missing);
  }
  return {.flop_s = chip.training_gemm_tflops() * 1e12,
          .bytes_s = chip.memory_gb_s * 1e9,
          .launch_s = kLaunchS,
          .value_bytes = kValueBytes};
}

double pass_time(const ModelSizes& sizes,
                 const DeviceRates& rates,
                 std::span<const PassChunk> chunks,
                 double logit_rows) {
  double layer_s = 0, rows = 0;
  const auto add = [&](double flops, double bytes) {
    layer_s += std::max(flops / rates.flop_s, bytes / rates.bytes_s) + rates.launch_s;
  };
  const auto product = [&](double count, double inner, double columns) {
    add(2 * count * inner * columns,
        rates.value_bytes * (count * inner + inner * columns + count * columns));
  };
  // One launch attends for all sequences: each takes the longer of its products and of reading its
  // keys and values.
  double attention_s = rates.launch_s;
  for (const PassChunk& chunk : chunks) {
    rows += chunk.tokens;
    const double pairs = chunk.tokens * (chunk.context + (chunk.tokens + 1) / 2);
    const double bytes = rates.value_bytes * 2 * sizes.key * (chunk.context + chunk.tokens);
    attention_s += std::max(4 * pairs * sizes.query / rates.flop_s, bytes / rates.bytes_s);
  }
  add(0, rates.value_bytes * 4 * rows * sizes.hidden);  // the norm and the residual, twice
  add(0, rates.value_bytes * 4 * rows * sizes.hidden);
  product(rows, sizes.hidden, sizes.query + 2 * sizes.key);
  add(0, rates.value_bytes * 2 * rows * (sizes.query + 2 * sizes.key));  // rotated and put away
  product(rows, sizes.query, sizes.hidden);
  product(rows, sizes.hidden, 2 * sizes.feed_forward);
  add(0, rates.value_bytes * 3 * rows * sizes.feed_forward);
  product(rows, sizes.feed_forward, sizes.hidden);
  const double blocks_s = static_cast<double>(sizes.num_blocks) * (layer_s + attention_s);
  layer_s = 0;
  if (logit_rows > 0) product(logit_rows, sizes.hidden, sizes.vocab);
  return blocks_s + layer_s;
}

ServingPlan plan_serving(const model::ModelConfig& config,
                         std::span<const ServingKind> kinds,
                         const ServingLoad& load,
                         double link_bytes_s) {
  const Draw draw = draw_phases(config, kinds, load);
  const std::span<const Phases> phases = draw.middle;
  std::vector<double> left;
  for (const ServingKind& kind : kinds) left.push_back(kind.count);
  ServingPlan plan;
  const double prompt_bytes = kv_bytes_token(config) * load.prompt_tokens;
  double link_left = link_bytes_s / prompt_bytes;  // requests a second
  while (link_left > 0) {
    const Trade trade = best_trade(phases, left);
    if (trade.gain < kLeastGain) break;
    const double rate = std::min({left[trade.from] / phases[trade.from].prefill_s,
                                  left[trade.to] / phases[trade.to].decode_s,
                                  link_left});
    const auto spend = [&](size_t idx, double seconds) {
      left[idx] -= seconds;
      if (left[idx] < 1e-9 * kinds[idx].count) left[idx] = 0;
    };
    spend(trade.from, rate * phases[trade.from].prefill_s);
    spend(trade.to, rate * phases[trade.to].decode_s);
    link_left -= rate;
    if (link_left < 1e-12) link_left = 0;
    plan.flows.push_back({trade.from, trade.to, rate});
  }
  for (size_t idx = 0; idx < kinds.size(); ++idx) {
    if (left[idx] > 0 && std::isfinite(phases[idx].both_s)) {
      plan.flows.push_back({idx, idx, whole_rate(left[idx], phases[idx])});
    }
    plan.each_both_requests_s.lo += whole_rate(kinds[idx].count, draw.slow[idx]);
    plan.each_both_requests_s.hi += whole_rate(kinds[idx].count, draw.fast[idx]);
  }
  double total = 0;
  for (const ServingFlow& flow : plan.flows) total += flow.share;
  if (total <= 0) {
    fail_usage(
        "none of the chips can hold the model's {:.3g} GB and the keys and values of {} "
        "tokens: take a smaller model or larger chips",
        kValueBytes * static_cast<double>(config.num_parameters()) / 1e9,
        load.prompt_tokens + load.answer_tokens);
  }
  for (ServingFlow& flow : plan.flows) {
    if (flow.prefill_idx != flow.decode_idx) plan.link_bytes_s += flow.share * prompt_bytes;
    flow.share /= total;
  }
  std::ranges::sort(plan.flows, std::greater{}, &ServingFlow::share);
  // A split's shares stay as planned, however fast the chips turn out. Where each does both, a
  // router sends to whoever has room.
  plan.requests_s = plan.link_bytes_s > 0 ? chips::Interval{rate_of(plan.flows, kinds, draw.slow),
                                                            rate_of(plan.flows, kinds, draw.fast)}
                                          : plan.each_both_requests_s;
  return plan;
}

double ServingPlan::local_share(size_t kind_idx) const {
  double written = 0, own = 0;
  for (const ServingFlow& flow : flows) {
    if (flow.decode_idx != kind_idx) continue;
    written += flow.share;
    if (flow.prefill_idx == kind_idx) own += flow.share;
  }
  return written > 0 ? own / written : 1;
}

std::vector<std::string> ServingPlan::describe(std::span<const ServingKind> kinds) const {
  std::vector<std::string> lines;
  for (const ServingFlow& flow : flows) {
    const std::string& reads = kinds[flow.prefill_idx].chip->name;
    const std::string& writes = kinds[flow.decode_idx].chip->name;
    lines.push_back(flow.prefill_idx == flow.decode_idx
                        ? fmt::format("{:.0f} % of requests: {} does both", 100 * flow.share, reads)
                        : fmt::format("{:.0f} % of requests: {} reads the prompt, {} writes the "
                                      "answer",
                                      100 * flow.share,
                                      reads,
                                      writes));
  }
  lines.push_back(fmt::format("{:.3g} to {:.3g} requests/s; each doing both: {:.3g} to {:.3g}",
                              requests_s.lo,
                              requests_s.hi,
                              each_both_requests_s.lo,
                              each_both_requests_s.hi));
  if (link_bytes_s > 0) {
    lines.push_back(fmt::format("{:.3g} GB/s of keys and values between them", link_bytes_s / 1e9));
  }
  return lines;
}

}  // namespace pelago::plan
