// How many chips serve so many people. A group of chips holds the model; a step of decoding reads
// the weights once and each answer's keys and values, so more answers at once cost little until
// memory, arithmetic or the promised time a token ends it (the roofline of arXiv:2211.05102). A
// prompt costs arithmetic alone.
#include <algorithm>
#include <cmath>
#include <set>

#include "plan/forecast/forecast.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
// Of the peaks: what decoding reaches of memory's bandwidth and prefill of arithmetic, worst and
// best; what is kept free of memory, and of a group's time for the unevenness of what arrives.
constexpr Range kBandwidthShare{0.5, 0.8}, kArithmeticShare{0.35, 0.6};
constexpr double kMemoryShare = 0.9, kBusyShare = 0.75;
constexpr int64_t kGroupMax = 64;

/// What a model of so many parameters usually looks like: width 128 times its depth, keys and
/// values in an eighth of the heads.
struct ServedModel {
  double weight_bytes = 0, flops_token = 0, kv_bytes_token = 0, layers = 0;
};
ServedModel shape_of(const WantedModel& model, double weight_bits) {
  ServedModel served;
  served.layers = std::cbrt(model.active() / (12 * 128.0 * 128.0));
  const double width = 128 * served.layers;
  served.weight_bytes = model.parameters * weight_bits / 8;
  served.flops_token = 2 * model.active();
  served.kv_bytes_token = 2 * served.layers * width / 8 * 2;
  return served;
}

struct GroupPlan {
  int64_t chips = 0;
  int64_t answers = 0;   // at once
  double request_s = 0;  // of a group's time
  std::string bound_by;
};

/// The best group of this chip; chips 0 if none keeps the latency. ratio: where in the ranges.
GroupPlan plan_group(const chips::Chip& chip,
                     const ServedModel& model,
                     const WantedModel& wanted,
                     const ServingWish& wish,
                     double ratio) {
  const double memory =
      (chip.usable_memory_gib > 0 ? chip.usable_memory_gib : 0.94 * chip.memory_gib) * kGib *
      kMemoryShare;
  const double bytes_s = chip.memory_gb_s * 1e9 * kBandwidthShare.at(ratio);
  double flop_s = chip.bf16_tflops.value_or(chip.fp16_tflops.value_or(0)) * 1e12;
  if (wish.weight_bits <= 8 && chip.int8_tflops)
    flop_s = std::max(flop_s, *chip.int8_tflops * 1e12);
  flop_s *= kArithmeticShare.at(ratio);
  if (is_press_only(chip)) flop_s *= 0.7 + 0.4 * ratio;
  const double context = wish.prompt_tokens + wish.answer_tokens;
  const double active_share = wanted.active() / wanted.parameters;
  GroupPlan best;
  double best_cost = 0;
  for (int64_t group = 1; group <= kGroupMax; group *= 2) {
    const auto size = static_cast<double>(group);
    const double left = size * memory - model.weight_bytes;
    if (left <= 0 || bytes_s <= 0 || flop_s <= 0) continue;
    const double first_token_s = wish.prompt_tokens * model.flops_token / (size * flop_s);
    if (first_token_s > wish.first_token_s) continue;
    // Two sums over the group a layer, of about 15 us each, and the starts of operators.
    const double fixed_s = model.layers * (group > 1 ? 50e-6 : 20e-6);
    const auto step_s = [&](double answers) {
      // Of a mixture of experts many answers read all experts, one reads its own.
      const double read_share = std::min(1.0, active_share * std::max(1.0, answers));
      const double read_s =
          (model.weight_bytes * read_share + answers * model.kv_bytes_token * context) /
          (size * bytes_s);
      return fixed_s + std::max(read_s, answers * model.flops_token / (size * flop_s));
    };
    const double most = std::floor(left / (model.kv_bytes_token * context));
    if (most < 1 || step_s(1) > wish.token_ms / 1e3) continue;
    double lo = 1, hi = most;
    while (hi - lo > 0.5) {
      const double middle = (lo + hi) / 2;
      (step_s(middle) <= wish.token_ms / 1e3 ? lo : hi) = middle;
    }
    const double answers = std::floor(step_s(most) <= wish.token_ms / 1e3 ? most : lo);
    const double request_s = first_token_s + wish.answer_tokens * step_s(answers) / answers;
    if (best.chips == 0 || size * request_s < best_cost) {
      best_cost = size * request_s;
      best = {group, static_cast<int64_t>(answers), request_s, ""};
      best.bound_by = answers == most ? "memory" : "the time a token may take";
    }
  }
  return best;
}

}  // namespace

std::vector<ServingNeed> serving_needs(const Scenario& scenario) {
  const ServingWish& wish = scenario.serving;
  std::vector<ServingNeed> needs;
  if (wish.users <= 0) return needs;
  const auto wanted =
      std::find_if(scenario.models.begin(), scenario.models.end(), [&](const WantedModel& model) {
        return model.name == wish.model;
      });
  if (wanted == scenario.models.end()) return needs;
  const ServedModel model = shape_of(*wanted, wish.weight_bits);
  const double peak_requests_s = wish.users * wish.requests_a_day / 86400 * wish.peak_ratio;
  const Draw middle = middle_draw(scenario);
  std::set<const chips::Chip*> seen;
  double first_train = 0, first_serve = 0;
  for (size_t i = 0; i < scenario.orders.size(); ++i) {
    const chips::Chip& chip = *scenario.orders[i].chip;
    if (!seen.insert(&chip).second) continue;
    ServingNeed need;
    need.chip = chip.name;
    std::vector<double> chips;
    for (const double ratio : {0.1, 0.5, 0.9}) {
      const GroupPlan group = plan_group(chip, model, *wanted, wish, ratio);
      if (group.chips == 0) continue;
      const double groups = std::ceil(peak_requests_s * group.request_s / kBusyShare);
      chips.push_back(groups * static_cast<double>(group.chips));
      if (ratio == 0.5) {
        need.chips_together = group.chips;
        need.answers_together = group.answers;
        need.bound_by = group.bound_by;
        need.serving_worth = 1 / (group.request_s * static_cast<double>(group.chips));
      }
    }
    if (chips.size() == 3) {
      need.chips = {chips[2], chips[1], chips[0]};
    } else {
      need.answers_together = 0;
      need.bound_by = chip.memory_gb_s <= 0
                          ? "nobody has said how fast its memory is"
                          : "it cannot keep the latency, however many work together";
    }
    need.training_worth = middle.orders[i].flop_s;
    if (first_train == 0) first_train = need.training_worth;
    if (first_serve == 0) first_serve = need.serving_worth;
    need.training_worth /= first_train;
    if (first_serve > 0) need.serving_worth /= first_serve;
    needs.push_back(std::move(need));
  }
  return needs;
}

}  // namespace pelago::plan
