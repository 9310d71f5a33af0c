// Faults on order as text.
#include "chips/emulated/faults.h"

#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/error.h"

namespace pelago::chips {
namespace {

struct KindName {
  std::string_view name;
  FaultKind kind;
};
constexpr std::array<KindName, 5> kKinds = {KindName{"wrong", FaultKind::kWrong},
                                            {"stuck", FaultKind::kStuck},
                                            {"slow", FaultKind::kSlow},
                                            {"oom", FaultKind::kOutOfMemory},
                                            {"lost", FaultKind::kLost}};

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  fail_usage(
      "fault \"{}\": {}; write KIND[=VALUE]@TRIGGER, as wrong@op=120, wrong=nan@p=0.001,seed=7, "
      "slow=1.8@s=3, stuck@op=9, oom@op=40 or lost@s=1.5",
      text,
      why);
}

/// The whole word as a number; nothing if it is none.
template <typename Number>
std::optional<Number> number_of(std::string_view word) {
  Number number{};
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return number;
}

/// "a=b" -> {"a", "b"}; no value without the sign.
struct Pair {
  std::string_view name;
  std::optional<std::string_view> value;
};
Pair split(std::string_view word, char sign) {
  const size_t place = word.find(sign);
  if (place == std::string_view::npos) return {word, std::nullopt};
  return {word.substr(0, place), word.substr(place + 1)};
}

void read_kind(std::string_view text, std::string_view word, EmulatedFault& fault) {
  const Pair kind = split(word, '=');
  const KindName* found = nullptr;
  for (const KindName& known : kKinds) {
    if (known.name == kind.name) found = &known;
  }
  if (found == nullptr) {
    refuse(text, fmt::format("\"{}\" is not wrong, stuck, slow, oom or lost", kind.name));
  }
  fault.kind = found->kind;
  if (fault.kind == FaultKind::kSlow && !kind.value) refuse(text, "slow needs a factor");
  if (!kind.value) return;
  if (fault.kind != FaultKind::kSlow && fault.kind != FaultKind::kWrong) {
    refuse(text, fmt::format("{} takes no value", kind.name));
  }
  const std::optional<double> value = number_of<double>(*kind.value);
  if (!value) refuse(text, fmt::format("\"{}\" is not a number", *kind.value));
  if (fault.kind == FaultKind::kSlow && !(*value >= 1 && std::isfinite(*value))) {
    refuse(text, fmt::format("a factor of {} is not 1 or above", *kind.value));
  }
  if (fault.kind == FaultKind::kWrong && *value == 0) refuse(text, "0 changes nothing");
  fault.value = *value;
}

void read_chance(std::string_view text, std::string_view word, EmulatedFault& fault) {
  const Pair parts = split(word, ',');
  const std::optional<double> probability = number_of<double>(parts.name);
  if (!probability || !(*probability > 0 && *probability <= 1)) {
    refuse(text, fmt::format("\"{}\" is not a probability above 0, 1 at most", parts.name));
  }
  fault.probability = *probability;
  if (!parts.value) return;
  const Pair seed = split(*parts.value, '=');
  const auto number = number_of<uint64_t>(seed.value.value_or(""));
  if (seed.name != "seed" || !number) {
    refuse(text, fmt::format("\"{}\" is not seed=NUMBER", *parts.value));
  }
  fault.seed = *number;
}

void read_trigger(std::string_view text, std::string_view word, EmulatedFault& fault) {
  const Pair trigger = split(word, '=');
  const std::string_view value = trigger.value.value_or("");
  if (trigger.name == "op") {
    const auto number = number_of<int64_t>(value);
    if (!number || *number < 1) {
      refuse(text, fmt::format("\"{}\" is not an operator's number, counted from 1", value));
    }
    fault.after_operators = *number;
  } else if (trigger.name == "s") {
    const auto seconds = number_of<double>(value);
    if (!seconds || !(*seconds >= 0 && std::isfinite(*seconds))) {
      refuse(text, fmt::format("\"{}\" is not a time in seconds", value));
    }
    fault.after_s = *seconds;
  } else if (trigger.name == "p") {
    read_chance(text, value, fault);
  } else {
    refuse(text, fmt::format("\"{}\" is not op=NUMBER, s=SECONDS or p=PROBABILITY", word));
  }
}

}  // namespace

EmulatedFault parse_fault(std::string_view text) {
  const Pair parts = split(text, '@');
  if (!parts.value) refuse(text, "it does not say when");
  EmulatedFault fault;
  read_kind(text, parts.name, fault);
  read_trigger(text, *parts.value, fault);
  return fault;
}

std::string text_of(const EmulatedFault& fault) {
  std::string text;
  for (const KindName& known : kKinds) {
    if (known.kind == fault.kind) text = known.name;
  }
  if (fault.kind == FaultKind::kSlow || (fault.kind == FaultKind::kWrong && fault.value != 1)) {
    text += fmt::format("={}", fault.value);
  }
  if (fault.probability > 0) {
    return text + fmt::format("@p={},seed={}", fault.probability, fault.seed);
  }
  return text + (fault.after_operators >= 0 ? fmt::format("@op={}", fault.after_operators)
                                            : fmt::format("@s={}", fault.after_s));
}

}  // namespace pelago::chips
