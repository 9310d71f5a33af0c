// A plan in pieces that a person can name, so that sites whose plans differ are told in what.
#pragma once

#include <map>
#include <string>

namespace pelago::sites {

/// The leaves of plan.json by their path: "exchange.inner_steps" -> "24". What lies deeper than two
/// levels, and texts that are long, stand as their hash. Throws Failure if it is no JSON object.
std::map<std::string, std::string> plan_facts(const std::string& plan_json);

}  // namespace pelago::sites
