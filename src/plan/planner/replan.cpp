// A site that lost a device, or whose devices changed their pace, goes on with the same batch; or
// the sites share the batch anew, since one of them has become slower as a whole. The plan at hand
// says what its devices need, so nothing is measured or read: this runs between two steps.
#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/cost/device/profile_key.h"
#include "plan/planner/planner.h"
#include "plan/planner/search/play/settle.h"
#include "plan/planner/sharing/share_batch.h"

namespace pelago::plan {

namespace {

// Moving blocks between processes costs a restart; shares alone cost nothing.
constexpr double kWorthARestart = 1.1;

/// The site without the ranks that are lost; the factors likewise.
std::vector<double> remove_lost(std::span<const size_t> lost,
                                std::span<const double> pace_factors,
                                SitePlan& site) {
  const std::set<size_t> gone(lost.begin(), lost.end());
  std::vector<DevicePlan> left;
  std::vector<double> factors;
  for (size_t rank = 0; rank < site.devices.size(); ++rank) {
    if (gone.contains(rank)) continue;
    left.push_back(std::move(site.devices[rank]));
    if (rank < pace_factors.size()) factors.push_back(pace_factors[rank]);
  }
  site.devices = std::move(left);
  return factors;
}

/// Fills the site from a layout, with the batch that it has. False if the batch is too small for
/// so many pipelines.
bool fill_with(PlannedSite& planned, int64_t batch, int64_t sequence_length, SitePlan& site) {
  if (static_cast<int64_t>(planned.layout.pipelines.size()) > batch) return false;
  Balance balance = balance_batch(planned.paces(), {.asked = batch, .is_fixed = true});
  settle_shares(planned.problem, planned.layout, balance.sequences);
  const SiteTime time =
      fill_site(planned.problem, planned.layout, balance.sequences, sequence_length, site);
  const SlowestStage slowest = find_slowest(site, time);
  site.bound_by =
      slowest.instead.empty() ? site.devices[slowest.rank].device + " compute" : slowest.instead;
  return true;
}

}  // namespace

std::vector<SiteDevice> devices_of(const Plan& plan,
                                   const SitePlan& site,
                                   std::span<const double> pace_factors) {
  std::vector<SiteDevice> devices;
  for (size_t rank = 0; rank < site.devices.size(); ++rank) {
    const DevicePlan& from = site.devices[rank];
    const bool is_of_all = is_joint(plan) && !site.pipelines.empty();
    const DeviceProfile* known = is_of_all ? profile_of_joint_rank(plan, static_cast<int>(rank))
                                           : find_profile(plan, site.name, from);
    if (known == nullptr) {
      fail("the plan has no profile of {}: make the plan again", from.device);
    }
    SiteDevice device{from.device, from.node, *known, from.memory_bytes};
    const double factor = rank < pace_factors.size() ? pace_factors[rank] : 1;
    DeviceProfile& profile = device.profile;
    for (LinearCost* cost : {&profile.block_forward,
                             &profile.block_backward,
                             &profile.embedding,
                             &profile.head,
                             &profile.stage_forward,
                             &profile.stage_backward}) {
      *cost = cost->times(factor);
    }
    profile.update_s *= factor;
    profile.update_run_s *= factor;
    profile.update_parameter_s *= factor;
    profile.update_block_s *= factor;
    for (CutProfile& cut : profile.cuts) {
      for (LinearCost* cost :
           {&cut.block_forward, &cut.block_backward, &cut.embedding, &cut.head}) {
        *cost = cost->times(factor);
      }
      cut.update_parameter_s *= factor;
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

bool has_same_stages(const SitePlan& one, const SitePlan& other) {
  if (one.devices.size() != other.devices.size() || one.slice_optimizer != other.slice_optimizer ||
      one.pipelines.size() != other.pipelines.size()) {
    return false;
  }
  for (size_t i = 0; i < one.pipelines.size(); ++i) {
    const auto is_same = [](const StagePlan& a, const StagePlan& b) {
      return a.first_block == b.first_block && a.last_block == b.last_block && a.ranks == b.ranks &&
             a.recompute == b.recompute;
    };
    if (!std::ranges::equal(one.pipelines[i].stages, other.pipelines[i].stages, is_same)) {
      return false;
    }
  }
  return true;
}

Plan share_batch(const Plan& plan,
                 const JobConfig& job,
                 std::span<const int64_t> sequences,
                 size_t site_idx,
                 std::span<const double> pace_factors) {
  PELAGO_ASSERT(sequences.size() == plan.sites.size(), "each site has a share");
  Plan changed = plan;
  int64_t first = 0;
  double step_s = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    SitePlan& site = changed.sites[i];
    site.first_sequence = first;
    first += sequences[i];
    if (site.batch_sequences != sequences[i]) {
      const auto factors = i == site_idx ? pace_factors : std::span<const double>();
      PlannedSite planned;
      planned.problem = make_problem(devices_of(plan, site, factors),
                                     sizes_of(job, plan.sequence_length),
                                     job.train,
                                     sequences[i]);
      auto layout = keep_layout(planned.problem, site);
      if (layout) planned.layout = std::move(*layout);
      if (!layout || !fill_with(planned, sequences[i], plan.sequence_length, site)) {
        fail("site \"{}\" cannot work with {} sequences of a batch: its {} pipelines take one each",
             site.name,
             sequences[i],
             site.pipelines.size());
      }
    }
    step_s = std::max(step_s, site.predicted_step_s);
  }
  PELAGO_ASSERT(first == plan.batch_sequences, "new shares are of the same batch");
  changed.predicted_tokens_s =
      static_cast<double>(changed.batch_sequences * changed.sequence_length) / step_s;
  return changed;
}

Plan replan_site(const Plan& plan,
                 const JobConfig& job,
                 size_t site_idx,
                 std::span<const size_t> lost,
                 std::span<const double> pace_factors) {
  PELAGO_ASSERT(site_idx < plan.sites.size(), "the site is one of the plan");
  Plan changed = plan;
  SitePlan& site = changed.sites[site_idx];
  const int64_t batch = site.batch_sequences;
  const std::vector<double> factors = remove_lost(lost, pace_factors, site);
  if (site.devices.empty()) fail("site \"{}\" has lost all its devices", site.name);
  PlannedSite planned;
  planned.problem = make_problem(
      devices_of(plan, site, factors), sizes_of(job, plan.sequence_length), job.train, batch);
  SitePlan kept = site;
  bool keeps = false;
  if (lost.empty()) {
    if (auto layout = keep_layout(planned.problem, site)) {
      planned.layout = std::move(*layout);
      keeps = fill_with(planned, batch, plan.sequence_length, kept);
    }
  }
  auto layout = find_layout(planned.problem);
  if (layout) planned.layout = std::move(*layout);
  const bool found = layout && fill_with(planned, batch, plan.sequence_length, site);
  if (keeps && (!found || kept.predicted_step_s < kWorthARestart * site.predicted_step_s)) {
    site = std::move(kept);
  } else if (!found) {
    fail(
        "site \"{}\": the model of {:.1f} M parameters does not fit the {} devices that are left; "
        "bring a device back, or add one",
        site.name,
        static_cast<double>(plan.num_parameters) / 1e6,
        site.devices.size());
  }
  double step_s = 0;
  for (const SitePlan& other : changed.sites) step_s = std::max(step_s, other.predicted_step_s);
  changed.predicted_tokens_s =
      static_cast<double>(changed.batch_sequences * changed.sequence_length) / step_s;
  return changed;
}

}  // namespace pelago::plan
