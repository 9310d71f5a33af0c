// Which pipelines a site runs. Few devices: every way to share them out is looked at. Many: most
// pipelines are alike, so a layout is a number of pipelines of one mixed composition, what is left
// of each kind in pipelines of its own, and the remainders in one of those. What looks best by the
// closed form is played through exactly.
#pragma once

#include <optional>
#include <vector>

#include "plan/planner/search/shape.h"

namespace pelago::plan {

/// Pipelines of one composition.
struct LayoutPart {
  Composition composition;
  int64_t count = 0;
};

struct Layout {
  std::vector<LayoutPart> parts;
  ShapeOptions options;
  bool slices_optimizer = false;
  int64_t num_pipelines() const;
};

/// A layout made concrete: one shape and one set of ranks for each pipeline, the one with the
/// lowest rank first.
struct SiteLayout {
  struct Pipeline {
    PipelineShape shape;
    std::vector<std::vector<int>> ranks;  // by stage
  };
  std::vector<Pipeline> pipelines;
  bool slices_optimizer = false;
  double sequences_a_second = 0;  // estimated, at problem.batch
};

/// Why there is none: nothing fits, or what the job asks for cannot be met.
std::optional<SiteLayout> find_layout(const SiteProblem& problem);

/// The layout of given stages, of a plan that exists; none if one of them does not fit any more.
std::optional<SiteLayout> keep_layout(const SiteProblem& problem, const SitePlan& site);

}  // namespace pelago::plan
