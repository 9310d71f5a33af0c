// Why a plan is not faster, and what would make it so: the fleet is changed in one thing at a time
// and planned anew.
#pragma once

#include <string>
#include <vector>

#include "plan/plan.h"

namespace pelago::plan {

/// Where the time of a site's step goes, in shares of it.
struct StepShares {
  std::string site;
  std::string bound_by;
  double compute = 0;  // of the pipeline that ends last: mean over its stages
  double bubble = 0;   // its stages waiting for each other, filling and draining included
  double reduce = 0;   // waiting for gradients' sums
  double update = 0;   // optimizer, and its weights sent around
  double line = 0;     // waiting for the line to other sites
};

struct PlanChange {
  std::string what;       // "2x the line a - b"
  double gain_ratio = 0;  // of tokens a second: 0.1 is a tenth more
};

struct Explanation {
  double bound_ratio = 0;  // of what the chips could do if they computed all the time
  std::vector<StepShares> sites;
  std::vector<PlanChange> changes;  // the ones that gain most first; at least a hundredth each
};

/// Plans once for each line, each kind of chip in each site (one more of it, a node of it where
/// there are several; a quarter more memory) and a doubled batch. probe: that of the plan, or null.
Explanation explain_plan(const Plan& plan,
                         const JobConfig& job,
                         const FleetConfig& fleet,
                         const chips::Catalogue& catalogue,
                         const Probe* probe,
                         double host_cores);

/// Tokens a second with what sites by rounds wait for their lines, which predicted_tokens_s leaves
/// out.
double tokens_s_with_lines(const Plan& plan);

/// For people: the bounds, and the three changes worth most.
std::string to_text(const Explanation& explanation);
std::string to_json(const Explanation& explanation);

}  // namespace pelago::plan
