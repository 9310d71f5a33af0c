// Where the seconds of a step go, rank by rank. What is predicted and what the trainer measures are
// divided in the same way, so that they can be laid side by side.
#pragma once

#include <vector>

#include "plan/plan.h"

namespace pelago::plan {

/// A rank's seconds of one step; together they are the step.
struct PartSeconds {
  double forward_s = 0;
  double backward_s = 0;   // with recomputing
  double bubble_s = 0;     // waiting for other stages, and within a block for those who share it
  double reduce_s = 0;     // from its last backward on: slower ranks, gradients, sliced weights
  double optimizer_s = 0;  // clearing, measuring and applying gradients
  double line_s = 0;       // by rounds: handing deltas over, slower sites and late merges
  double sum_s() const {
    return forward_s + backward_s + bubble_s + reduce_s + optimizer_s + line_s;
  }
  PartSeconds& operator+=(const PartSeconds& other);
  PartSeconds times(double factor) const;
};

/// A part by its name, for tables.
struct NamedPart {
  const char* name;
  double PartSeconds::*seconds;
};
const std::vector<NamedPart>& all_parts();

/// Of a mean step: [site][rank], in plan order. Throws Failure (exit 1) if the plan lacks a
/// profile.
std::vector<std::vector<PartSeconds>> parts_of_plan(const Plan& plan, const JobConfig& job);

}  // namespace pelago::plan
