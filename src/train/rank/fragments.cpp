// The schedule by which a rank's weights leave and come back in fragments.
#include <algorithm>
#include <cstdlib>

#include "base/clock.h"
#include "base/error.h"
#include "base/text/json.h"
#include "train/rank/rank_run.h"
#include "train/recovery/restart_point.h"
#include "train/site_runner.h"

namespace pelago::train {

using nlohmann::json;

std::vector<Fragment> cut_fragments(const model::ModelConfig& model, int64_t num_fragments) {
  std::vector<int64_t> borders{0};  // of tensors, in the flat vector
  for (const model::ParameterSpec& spec : model::parameter_specs(model)) {
    borders.push_back(borders.back() + spec.num_values());
  }
  const int64_t num_values = borders.back();
  PELAGO_ASSERT(num_fragments > 0 && num_fragments <= num_values, "a fragment holds something");
  // Both ends of a fragment may move by a twentieth of its size, which keeps sizes within a tenth.
  const int64_t reach = num_values / num_fragments / 20;
  std::vector<Fragment> fragments;
  for (int64_t i = 0; i < num_fragments; ++i) {
    const int64_t ideal = num_values * (i + 1) / num_fragments;
    const int64_t border = *std::min_element(borders.begin(), borders.end(), [&](auto a, auto b) {
      return std::abs(a - ideal) < std::abs(b - ideal);
    });
    const int64_t begin = fragments.empty() ? 0 : fragments.back().end;
    const int64_t end = std::abs(border - ideal) <= reach ? border : ideal;
    fragments.push_back({begin, end});
  }
  return fragments;
}

/// What was told of is done again as it was. Beyond that, nobody need wait for what this site is
/// behind: it goes on at the step that the others have come to.
bool RankRun::leaves_out_next() const {
  return setup_.leaves_out(state_.step + 1, control_->others_step());
}

/// Fragments leave and come as after any step, with weights that are a little less trained.
void RankRun::leave_out_step() {
  ++state_.step;
  trainer_->set_data_shift(--setup_.data_shift);
  if (speaks_for_site()) {
    control_->send(json({{"type", "left_out"}, {"step", state_.step}}).dump());
  }
  exchange_after_step();
}

/// Returns the seconds spent waiting for a merge.
double RankRun::exchange_after_step() {
  const int64_t leaving = schedule_.snapshot_after(state_.step);
  if (leaving >= 0) snapshot(leaving);
  const int64_t coming = schedule_.merge_after(state_.step);
  if (coming < setup_.first_exchange) return 0;  // none, or the site began with what it gave
  // Given by how much the weights differ from the snapshot, if training went on since.
  const double alpha = plan_.exchange.merge_alpha;
  const double keep = schedule_.overlap_steps > 0 ? 1 : alpha;
  return merge(coming, {.keep = keep, .take = 1 - alpha});
}

const Fragment& RankRun::fragment_of(int64_t exchange_idx) const {
  return fragments_[static_cast<size_t>(train::fragment_of(schedule_, exchange_idx))];
}

void RankRun::snapshot(int64_t exchange_idx) {
  if (exchange_idx <= setup_.sent_exchange) return;  // a step that is repeated: it has left already
  trainer_->store({.master = shared_.local(), .m = {}, .v = {}}, fragment_of(exchange_idx));
  collective_->barrier();
  if (!is_first_rank()) return;
  control_->send(json({{"type", "snapshot"}, {"exchange", exchange_idx}}).dump());
}

/// Returns the seconds spent waiting for the merged fragment.
double RankRun::merge(int64_t exchange_idx, const MergeFactors& factors) {
  const double begin_s = steady_now_s();
  wait_together([&] { return control_->is_merged(exchange_idx); });
  const double wait_s = steady_now_s() - begin_s;
  trainer_->merge(fragment_of(exchange_idx),
                  shared_.merged(),
                  factors,
                  {.master = shared_.local(), .m = {}, .v = {}});
  control_->forget_merged(exchange_idx);
  return wait_s;
}

void RankRun::take_last_merges() {
  const auto num_fragments = static_cast<int64_t>(fragments_.size());
  for (int64_t i = 0; i < num_fragments; ++i) {
    const int64_t exchange_idx = schedule_.num_regular() + i;
    snapshot(exchange_idx);
    merge(exchange_idx, {.keep = 0, .take = 1});
  }
}

}  // namespace pelago::train
