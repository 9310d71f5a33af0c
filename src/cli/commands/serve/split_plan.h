// `pelago serve MODEL --plan`: which kind of chip had better read prompts for which, said without
// serving.
#pragma once

#include <filesystem>
#include <string>

#include "cli/commands/commands.h"
#include "plan/serving/serving_plan.h"

namespace pelago::cli {

struct SplitPlanArguments {
  std::filesystem::path folder;  // of config.json
  std::string chips;             // "910b=8,emulated:h20": a name alone is one chip
  plan::ServingLoad load;
  double link_gbit_s = 200;
};

/// A table, or JSON. Throws Failure (exit 2) naming what of the chips cannot be.
void print_split_plan(const SplitPlanArguments& arguments, const Globals& globals);

}  // namespace pelago::cli
