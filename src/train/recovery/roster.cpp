#include "train/recovery/roster.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "plan/planner/sharing/share_batch.h"

namespace pelago::train {

Roster::Roster(plan::Plan own, plan::JobConfig job, size_t site_idx)
    : own_(std::move(own)), job_(std::move(job)), site_idx_(site_idx), plan_(own_) {
  const size_t num_devices = own_.sites.at(site_idx).devices.size();
  is_lost_.resize(num_devices);
  factors_.resize(num_devices, 1.0);
  places_.resize(num_devices);
  std::iota(places_.begin(), places_.end(), size_t{0});
}

std::vector<size_t> Roster::lost() const {
  std::vector<size_t> places;
  for (size_t place = 0; place < is_lost_.size(); ++place) {
    if (is_lost_[place]) places.push_back(place);
  }
  return places;
}

void Roster::lose(std::span<const size_t> ranks) {
  std::vector<bool> is_lost = is_lost_;
  for (const size_t rank : ranks) is_lost[places_.at(rank)] = true;
  plan_anew(is_lost, factors_);
}

void Roster::take_back(size_t place) {
  std::vector<bool> is_lost = is_lost_;
  std::vector<double> factors = factors_;
  is_lost.at(place) = false;
  factors[place] = 1.0;
  own_.sites[site_idx_].devices[place].faults.clear();
  plan_anew(is_lost, factors);
}

void Roster::set_pace(std::span<const double> factors) {
  std::vector<double> all = factors_;
  for (size_t rank = 0; rank < factors.size(); ++rank) all[places_.at(rank)] = factors[rank];
  plan_anew(is_lost_, all);
}

void Roster::set_shares(std::span<const int64_t> sequences) {
  std::vector<double> factors;
  for (size_t rank = 0; rank < places_.size(); ++rank) factors.push_back(pace(rank));
  plan::Plan own = plan::share_batch(own_, job_, sequences, site_idx_, {});
  plan_ = plan::share_batch(plan_, job_, sequences, site_idx_, factors);
  own_ = std::move(own);
}

void Roster::plan_anew(const std::vector<bool>& is_lost, const std::vector<double>& factors) {
  std::vector<size_t> lost, places;
  for (size_t place = 0; place < is_lost.size(); ++place) {
    (is_lost[place] ? lost : places).push_back(place);
  }
  const bool is_own =
      lost.empty() && std::all_of(factors.begin(), factors.end(), [](double f) { return f == 1; });
  plan_ = is_own ? own_ : plan::replan_site(own_, job_, site_idx_, lost, factors);
  is_lost_ = is_lost;
  factors_ = factors;
  places_ = std::move(places);
}

}  // namespace pelago::train
