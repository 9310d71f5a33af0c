// How much line a way of training needs: the least bandwidth, the same on every line, with which
// the sites compute for a given share of their time.
#pragma once

#include <vector>

#include "plan/simulation/run/run_model.h"

namespace pelago::plan {

/// Share of the time in which the slowest site computes, once the exchanges have found their rhythm,
/// on the lines as they are. Nothing breaks and nothing varies.
double utilisation_of(const RunModel& model);

/// The same, once the exchanges have found their rhythm, with
/// so many bits/s on every line. Nothing breaks and nothing varies.
double utilisation_at(const RunModel& model, double bits_s);

/// bits/s for this utilisation (0..1, both excluded), to a part in 10,000. Throws Failure (exit 2)
/// if no line is wide enough, because latency alone costs more, and if there is nothing to
/// exchange.
double bandwidth_needed(const RunModel& model, double utilisation);

/// `count` values, evenly spaced in their logarithm, from lo to hi; the one nearest to value. What
/// was published lies on such a grid.
double nearest_on_grid(double value, double lo, double hi, int count);

}  // namespace pelago::plan
