#include "sites/process/plan_facts.h"

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

constexpr int kDepth = 2;
constexpr size_t kCharsMax = 40;

void add(const json& value,
         const std::string& path,
         int depth,
         std::map<std::string, std::string>& facts) {
  if (value.is_structured() && depth < kDepth) {
    for (const auto& [key, inner] : value.items()) {
      add(inner, path.empty() ? key : path + "." + key, depth + 1, facts);
    }
    return;
  }
  const std::string text = value.dump();
  facts[path] = text.size() <= kCharsMax ? text : hash_hex(text).substr(0, 8);
}

}  // namespace

std::map<std::string, std::string> plan_facts(const std::string& plan_json) {
  const json plan = try_parse_json(plan_json);
  if (!plan.is_object()) fail("plan.json is no JSON object; plan again");
  std::map<std::string, std::string> facts;
  add(plan, "", 0, facts);
  return facts;
}

}  // namespace pelago::sites
