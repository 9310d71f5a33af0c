// Plans of a site that has changed on the way: beside plan.json, which stays the run's own, lie
// plan-1.json, plan-2.json and so on, or plan-SITE-1.json where a run has several sites.
#pragma once

#include <fmt/format.h>

#include <filesystem>

#include "base/files.h"
#include "plan/plan.h"

namespace pelago::train {

/// plan: any of the run, for the names of its sites. plan_idx 0 is plan.json.
inline std::filesystem::path plan_path(const std::filesystem::path& run_dir,
                                       const plan::Plan& plan,
                                       int site_idx,
                                       int plan_idx) {
  if (plan_idx == 0) return run_dir / "plan.json";
  if (plan.sites.size() == 1) return run_dir / fmt::format("plan-{}.json", plan_idx);
  const std::string& site = plan.sites[static_cast<size_t>(site_idx)].name;
  return run_dir / fmt::format("plan-{}-{}.json", site, plan_idx);
}

/// The plan of that number. own: plan.json's. Throws Failure if it is not there or not a plan.
inline plan::Plan read_plan(const std::filesystem::path& run_dir,
                            const plan::Plan& own,
                            int site_idx,
                            int plan_idx) {
  if (plan_idx == 0) return own;
  const std::filesystem::path path = plan_path(run_dir, own, site_idx, plan_idx);
  return plan::plan_from_json(read_text_file(path), path.string());
}

}  // namespace pelago::train
