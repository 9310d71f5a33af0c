// All layouts worth looking at.
#pragma once

#include <functional>

#include "plan/planner/search/layout.h"

namespace pelago::plan {

using VisitLayout = std::function<void(const std::vector<LayoutPart>&)>;

/// Every way to share out so many sets of devices by kind, each composition once. Returns false if
/// there are more than `most` of them; those visited then are not all.
bool visit_all_layouts(ShapeBook& book,
                       const Composition& sets,
                       int64_t most,
                       const VisitLayout& visit);

/// Layouts of many devices: a mixed composition as often as it goes, or none, and each kind's rest
/// alone in its best pipelines, remainders joined to one of them; those of fewer than
/// num_pipelines_min pipelines may be left out.
void visit_bulk_layouts(ShapeBook& book,
                        const Composition& sets,
                        int64_t num_pipelines_min,
                        const VisitLayout& visit);

}  // namespace pelago::plan
