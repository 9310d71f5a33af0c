#include "cli/commands/serve/split_plan.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "base/error.h"
#include "base/text/json.h"
#include "model/config.h"
#include "plan/fleet.h"
#include "serve/server/split_options.h"

namespace pelago::cli {

namespace {

plan::ServingKind read_kind(const std::string& text, const chips::Catalogue& catalogue) {
  constexpr double kCountMax = 1e6;
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  plan::ServingKind kind = {.is_emulated = plan::is_emulated(name)};
  kind.chip = &catalogue.find(kind.is_emulated ? name.substr(name.find(':') + 1) : name);
  if (equals == std::string::npos) return kind;
  const char* const end = text.data() + text.size();
  const auto [read_to, error] = std::from_chars(text.data() + equals + 1, end, kind.count);
  const bool is_whole = error == std::errc() && read_to == end && kind.count >= 1 &&
                        kind.count <= kCountMax && kind.count == static_cast<int>(kind.count);
  if (!is_whole) fail_usage("--plan {}: write CHIP=NUMBER with 1 chip to {:.0f}", text, kCountMax);
  return kind;
}

std::vector<plan::ServingKind> read_kinds(const std::string& list,
                                          const chips::Catalogue& catalogue) {
  std::vector<plan::ServingKind> kinds;
  for (const std::string& text : serve::devices_of(list)) {
    kinds.push_back(read_kind(text, catalogue));
    const auto is_it = [&](const plan::ServingKind& kind) {
      return kind.chip == kinds.back().chip;
    };
    if (std::ranges::count_if(kinds, is_it) > 1) {
      fail_usage("--plan {}: {} stands there twice; add the numbers", list, kinds.back().chip->id);
    }
  }
  return kinds;
}

chips::Interval gain_of(const plan::ServingPlan& plan) {
  return {plan.requests_s.lo / plan.each_both_requests_s.lo,
          plan.requests_s.hi / plan.each_both_requests_s.hi};
}

std::string name_of(const plan::ServingKind& kind) {
  return fmt::format("{:g} x {}", kind.count, kind.chip->name);
}

std::string to_table(const plan::ServingPlan& plan,
                     const std::vector<plan::ServingKind>& kinds,
                     const SplitPlanArguments& arguments) {
  std::string text = fmt::format("prompts of {:g} tokens, answers of {:g}\n\n",
                                 arguments.load.prompt_tokens,
                                 arguments.load.answer_tokens) +
                     fmt::format("{:>8}  {:<34}{}\n", "requests", "read by", "answered by");
  for (const plan::ServingFlow& flow : plan.flows) {
    text += fmt::format("{:>6.1f} %  {:<34}{}\n",
                        100 * flow.share,
                        name_of(kinds[flow.prefill_idx]),
                        name_of(kinds[flow.decode_idx]));
  }
  const chips::Interval gain = gain_of(plan);
  const auto line = [](const char* what, const chips::Interval& range, const char* unit) {
    return fmt::format("{:<22}{:.3g} to {:.3g}{}\n", what, range.lo, range.hi, unit);
  };
  text += "\n" + line("so", plan.requests_s, " requests/s") +
          line("each doing both", plan.each_both_requests_s, " requests/s") +
          line("ratio", gain, "") +
          fmt::format("{:<22}{:.3g} of {:g} Gbit/s\n",
                      "between the kinds",
                      8e-9 * plan.link_bytes_s,
                      arguments.link_gbit_s);
  return text;
}

nlohmann::json range_json(const chips::Interval& range) { return {range.lo, range.hi}; }

std::string to_json(const plan::ServingPlan& plan,
                    const std::vector<plan::ServingKind>& kinds,
                    const SplitPlanArguments& arguments) {
  nlohmann::json json = {{"prompt_tokens", arguments.load.prompt_tokens},
                         {"answer_tokens", arguments.load.answer_tokens},
                         {"requests_s", range_json(plan.requests_s)},
                         {"each_both_requests_s", range_json(plan.each_both_requests_s)},
                         {"ratio", range_json(gain_of(plan))},
                         {"link_gbit_s", 8e-9 * plan.link_bytes_s},
                         {"flows", nlohmann::json::array()},
                         {"chips", nlohmann::json::array()}};
  for (const plan::ServingFlow& flow : plan.flows) {
    json["flows"].push_back({{"prefill", kinds[flow.prefill_idx].chip->id},
                             {"decode", kinds[flow.decode_idx].chip->id},
                             {"share", flow.share}});
  }
  for (size_t idx = 0; idx < kinds.size(); ++idx) {
    json["chips"].push_back({{"chip", kinds[idx].chip->id},
                             {"count", kinds[idx].count},
                             {"local_share", plan.local_share(idx)}});
  }
  return json.dump();
}

}  // namespace

void print_split_plan(const SplitPlanArguments& arguments, const Globals& globals) {
  const auto catalogue = chips::Catalogue::built_in();
  const std::vector<plan::ServingKind> kinds = read_kinds(arguments.chips, catalogue);
  const plan::ServingPlan plan =
      plan::plan_serving(model::read_model_config(arguments.folder / "config.json"),
                         kinds,
                         arguments.load,
                         arguments.link_gbit_s * 1e9 / 8);
  if (globals.json) {
    std::printf("%s\n", to_json(plan, kinds, arguments).c_str());
  } else {
    std::printf("%s", to_table(plan, kinds, arguments).c_str());
  }
}

}  // namespace pelago::cli
