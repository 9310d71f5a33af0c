#include "sites/protocol/round/differences.h"

#include <set>

#include "base/error.h"

namespace pelago::sites {

namespace {

constexpr size_t kNamedMax = 5;

struct Fact {
  std::string what, mine, theirs;
};

const std::string& value_of(const std::map<std::string, std::string>& facts,
                            const std::string& key) {
  static const std::string none = "none";
  const auto found = facts.find(key);
  return found == facts.end() ? none : found->second;
}

/// "exchange.inner_steps 30, not 24; seed 2, not 1"
std::string plan_difference(const Hello& mine, const Hello& theirs) {
  std::set<std::string> keys;
  for (const auto* facts : {&mine.plan_facts, &theirs.plan_facts}) {
    for (const auto& [key, value] : *facts) keys.insert(key);
  }
  std::string named;
  size_t num_named = 0, num_more = 0;
  for (const std::string& key : keys) {
    const std::string &own = value_of(mine.plan_facts, key),
                      &other = value_of(theirs.plan_facts, key);
    if (own == other) continue;
    if (num_named == kNamedMax) {
      ++num_more;
      continue;
    }
    named += fmt::format("{}{} {}, not {}", num_named++ == 0 ? "" : "; ", key, own, other);
  }
  if (num_more > 0) named += fmt::format("; {} more", num_more);
  // Equal but for what no key says: the text itself.
  return named.empty() ? fmt::format("{}, not {}", mine.plan_hash, theirs.plan_hash) : named;
}

}  // namespace

std::string differences(const Hello& mine, const Hello& theirs) {
  const Fact facts[] = {
      {"wire version", std::to_string(mine.wire_version), std::to_string(theirs.wire_version)},
      {"plan.json", mine.plan_hash, theirs.plan_hash},
      {"tokenizer", mine.tokenizer_hash, theirs.tokenizer_hash},
      {"dataset", mine.dataset_hash, theirs.dataset_hash},
      {"initial weights", mine.weights_hash, theirs.weights_hash}};
  std::string differing;
  for (const Fact& fact : facts) {
    if (fact.mine == fact.theirs || fact.theirs.empty()) continue;
    const std::string how = fact.what == "plan.json"
                                ? plan_difference(mine, theirs)
                                : fmt::format("{}, not {}", fact.mine, fact.theirs);
    differing += fmt::format("{}{} ({})", differing.empty() ? "" : ", ", fact.what, how);
  }
  return differing;
}

}  // namespace pelago::sites
