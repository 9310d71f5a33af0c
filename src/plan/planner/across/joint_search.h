// Pipelines over several sites: which stages, how many microbatches under way. The devices of all
// sites make one problem, in which kinds stay apart by site, so that a pipeline crosses each line
// once. Pipelines beside each other are alike and are cut alike: who holds the same blocks is then
// in one site, and gradients cross a line for a tied embedding only.
#pragma once

#include <optional>
#include <vector>

#include "plan/planner/search/layout.h"

namespace pelago::plan {

struct JointLayout {
  SiteProblem problem;          // ranks count through all sites
  SiteLayout layout;            // costs of stages in front of a line have the line in them
  std::vector<int64_t> shares;  // sequences of each pipeline
  double line_s = 0;            // once a step: a tied embedding and the sums that cross lines
  double step_s = 0;
  double near_step_s = 0;          // of the same stages in one site
  double busiest_line_mbit_s = 0;  // each way, average over a step
  double apart_sequences_s = 0;    // each site by itself, together; 0: one of them cannot
};

/// The fastest; none if the model does not fit all devices together.
std::optional<JointLayout> find_joint_layout(const std::vector<std::vector<SiteDevice>>& sites,
                                             const FleetConfig& fleet,
                                             const JobConfig& job);

/// Bytes of one activation value between sites. dtype: in which its stages train.
double activation_bytes(int activation_bits, const std::string& dtype);

}  // namespace pelago::plan
