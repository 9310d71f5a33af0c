#include "plan/planner/aim/choose.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>

#include "base/error.h"
#include "plan/cost/device/profile.h"
#include "plan/planner/aim/allowance.h"
#include "plan/planner/aim/climb.h"
#include "plan/planner/aim/part_of_fleet.h"
#include "plan/planner/explain/explain.h"
#include "plan/planner/figures/figures.h"
#include "plan/planner/search/balance.h"

namespace pelago::plan {

namespace {

constexpr int64_t kFleetsAll = 400;    // so many fleets are all planned...
constexpr int64_t kDevicesFew = 24;    // ... if no more devices are in them
constexpr int64_t kNumbersTried = 9;   // of a kind, where there are more; with many devices:
constexpr int64_t kNumbersOfMany = 5;  // each plan takes a second or so then
constexpr int64_t kDevicesMany = 64;
constexpr int64_t kPlansMax = 60;     // of fleets that are not all planned...
constexpr int64_t kPlansOfMany = 32;  // ... and where devices are many

class Chooser {
 public:
  Chooser(const JobConfig& job,
          const FleetConfig& fleet,
          const chips::Catalogue& catalogue,
          const Probe* probe,
          double host_cores)
      : job_(job),
        fleet_(fleet),
        catalogue_(catalogue),
        probe_(probe),
        host_cores_(host_cores),
        groups_(groups_of(fleet, catalogue)) {
    check_known();
    read_keep_free();
  }

  ChosenFleet choose() {
    Counts best = search();
    const Worth worth = worth_of(best);
    if (worth.excess > 0) refuse(best, worth);
    ChosenFleet chosen;
    chosen.fleet = fleet_of(best);
    chosen.plan = best_ && best_->counts == best
                      ? std::move(best_->plan)
                      : make_plan(job_, chosen.fleet, catalogue_, probe_, host_cores_);
    chosen.num_plans = num_plans_;
    chosen.left_free = left_free(fleet_, chosen.fleet, catalogue_);
    return chosen;
  }

 private:
  void check_known() const {
    const AimConfig& aim = job_.aim;
    const bool needs_power = aim.objective == "tokens/joule" || aim.max_watts > 0;
    for (const Group& group : groups_) {
      const std::string& site = fleet_.sites[group.site_idx].name;
      if (needs_power && group.power_w == 0) {
        fail_usage(
            "the power of {} in site \"{}\" is not known: give power_w of each in fleet.toml",
            group.name,
            site);
      }
      if (aim.objective == "tokens/price" && group.price_hour == 0) {
        fail_usage(
            "the price of {} in site \"{}\" is not known: give price_hour of each in "
            "fleet.toml, in any one currency",
            group.name,
            site);
      }
    }
  }

  void read_keep_free() {
    for (const std::string& one : job_.aim.keep_free) {
      const size_t equals = one.find('=');
      const std::string name = one.substr(0, equals);
      const int64_t count = std::stoll(one.substr(equals + 1));
      int64_t has = 0;
      std::string chip = name;
      const auto is_here = [&](const std::string& id) {
        return std::ranges::any_of(groups_, [&](const Group& group) { return group.chip == id; });
      };
      if (!is_here(name)) chip = catalogue_.find(name).id;
      for (const Group& group : groups_) has += group.chip == chip ? group.count() : 0;
      if (has < count) {
        fail_usage("plan.keep_free = \"{}\": the fleet has {} of them", one, has);
      }
      keep_free_[chip] = std::max(keep_free_[chip], count);
    }
  }

  /// Numbers of a group that are worth a plan, the largest first.
  std::vector<int64_t> numbers_of(const Group& group, bool is_all) const {
    std::vector<int64_t> numbers;
    const int64_t count = group.count();
    if (is_all || count < kNumbersTried) {
      for (int64_t n = count; n >= 0; --n) numbers.push_back(n);
      return numbers;
    }
    const int64_t tried = num_devices_ > kDevicesMany ? kNumbersOfMany : kNumbersTried;
    for (int64_t i = tried - 1; i >= 0; --i) {
      const int64_t nodes = count * i / (tried - 1) / group.node_size;
      numbers.push_back(i == tried - 1 ? count : nodes * group.node_size);
    }
    const auto kept = keep_free_.find(group.chip);
    if (kept != keep_free_.end()) numbers.push_back(std::max<int64_t>(0, count - kept->second));
    if (job_.aim.max_watts > 0) {
      const auto powered = static_cast<int64_t>(job_.aim.max_watts / group.power_w);
      numbers.push_back(std::min(count, powered));
      numbers.push_back(std::min(count, powered / group.node_size * group.node_size));
    }
    std::ranges::sort(numbers, std::greater<>());
    numbers.erase(std::ranges::unique(numbers).begin(), numbers.end());
    return numbers;
  }

  Counts search() {
    double num_fleets = 1;
    for (const Group& group : groups_) {
      num_devices_ += group.count();
      num_fleets *= static_cast<double>(group.count() + 1);
    }
    const Counts all = whole();
    if (num_fleets > static_cast<double>(kFleetsAll) || num_devices_ > kDevicesFew)
      return climb_up();
    Counts best = all, counts = all;
    while (true) {
      if (worth_of(counts).is_better_than(worth_of(best))) best = counts;
      size_t idx = 0;
      while (idx < counts.size() && counts[idx] == 0) {
        counts[idx] = all[idx];
        ++idx;
      }
      if (idx == counts.size()) return best;
      --counts[idx];
    }
  }

  Counts climb_up() {
    ClimbTerms terms;
    terms.device_tokens_s = device_tokens_s();
    const Allowance allowance(groups_, job_.aim, keep_free_, terms.device_tokens_s);
    terms.whole = whole();
    terms.starts = allowance.starts();
    terms.numbers = [&](size_t i, int64_t has) {
      std::vector<int64_t> numbers = numbers_of(groups_[i], false);
      const int64_t step = num_devices_ > kDevicesMany ? groups_[i].node_size : 1;
      for (const int64_t near : {has + step, has - step, has - 2 * step}) {
        if (near >= 0 && near <= groups_[i].count()) numbers.push_back(near);
      }
      return numbers;
    };
    terms.fill = [&](const Counts& counts, size_t but) { return allowance.filled(counts, but); };
    terms.least_excess = [&](const Counts& counts) {
      return least_excess_of(counts, allowance.bound_tokens_s(counts));
    };
    terms.bound = [&](const Counts& counts) {
      return objective_of(allowance.bound_tokens_s(counts), counts);
    };
    terms.worth = [&](const Counts& counts) -> const Worth& { return worth_of(counts); };
    terms.plans_max = num_devices_ > kDevicesMany ? kPlansOfMany : kPlansMax;
    return climb(terms);
  }

  /// What each device could do at best, by group.
  std::vector<double> device_tokens_s() const {
    double ends = std::numeric_limits<double>::infinity();
    std::vector<double> rates;
    for (const Group& group : groups_) {
      const FleetSite& site = fleet_.sites[group.site_idx];
      const DeviceProfile profile = profile_device(site.name,
                                                   site.devices[group.devices.front()],
                                                   job_,
                                                   fleet_,
                                                   catalogue_,
                                                   probe_,
                                                   static_cast<int>(group.node_size));
      const DeviceBound bound = bound_of_device(profile, job_);
      ends = std::min(ends, bound.ends);
      rates.push_back(bound.blocks_s * static_cast<double>(job_.data.sequence_length));
    }
    const double blocks = static_cast<double>(job_.model.num_hidden_layers) + ends;
    for (double& tokens_s : rates) tokens_s /= blocks;
    return rates;
  }

  /// Limits, those on time as if all devices computed all the time.
  double least_excess_of(const Counts& counts, double tokens_s) const {
    constexpr double kNoPlan = 1e9;
    if (tokens_s == 0) return kNoPlan;
    double excess = excess_of(counts);
    if (job_.aim.deadline_hours > 0) {
      const TrainConfig& train = job_.train;
      const BatchRange range{.asked = train.batch_sequences, .is_fixed = train.exact_batch};
      const double tokens = static_cast<double>(train.steps) *
                            static_cast<double>(range.lo() * job_.data.sequence_length);
      excess += std::max(0.0, tokens / tokens_s / 3600 / job_.aim.deadline_hours - 1);
    }
    return excess;
  }

  Counts whole() const {
    Counts all;
    for (const Group& group : groups_) all.push_back(group.count());
    return all;
  }

  double watts_of(const Counts& counts) const {
    double watts = 0;
    for (size_t i = 0; i < groups_.size(); ++i) {
      watts += static_cast<double>(counts[i]) * groups_[i].power_w;
    }
    return watts;
  }

  /// Limits that need no plan to be seen broken.
  double excess_of(const Counts& counts) const {
    double excess = 0;
    std::map<std::string, int64_t> free;
    for (size_t i = 0; i < groups_.size(); ++i) {
      free[groups_[i].chip] += groups_[i].count() - counts[i];
    }
    for (const auto& [chip, count] : keep_free_) {
      excess += static_cast<double>(std::max<int64_t>(0, count - free[chip]));
    }
    const double limit = job_.aim.max_watts;
    if (limit > 0) excess += std::max(0.0, watts_of(counts) / limit - 1);
    return excess;
  }

  const Worth& worth_of(const Counts& counts) {
    const auto [found, is_new] = known_.try_emplace(counts);
    Worth& worth = found->second;
    if (!is_new) return worth;
    constexpr double kNoPlan = 1e9;
    worth.excess = excess_of(counts);
    if (std::ranges::all_of(counts, [](int64_t count) { return count == 0; })) {
      worth.excess += kNoPlan;
      return worth;
    }
    // How much too many is known without a plan.
    if (worth.excess > 0) return worth;
    try {
      num_plans_ += 1;
      Plan plan = make_plan(job_, fleet_of(counts), catalogue_, probe_, host_cores_);
      worth.tokens_s = tokens_s_with_lines(plan);
      worth.objective = objective_of(worth.tokens_s, counts);
      worth.excess += lateness_of(plan, worth.tokens_s);
      if (!best_ || worth.is_better_than(best_->worth)) best_ = {counts, worth, std::move(plan)};
    } catch (const Failure&) {
      // The whole fleet's own refusal is the one to tell.
      if (counts == whole()) throw;
      worth.excess += kNoPlan;
    }
    return worth;
  }

  double objective_of(double tokens_s, const Counts& counts) const {
    if (job_.aim.objective == "tokens/joule") return tokens_s / watts_of(counts);
    if (job_.aim.objective != "tokens/price") return tokens_s;
    double price_hour = 0;
    for (size_t i = 0; i < groups_.size(); ++i) {
      price_hour += static_cast<double>(counts[i]) * groups_[i].price_hour;
    }
    return tokens_s * 3600 / price_hour;
  }

  double hours_of(const Plan& plan, double tokens_s) const {
    const auto tokens = static_cast<double>(plan.steps) *
                        static_cast<double>(plan.batch_sequences * plan.sequence_length);
    return tokens / tokens_s / 3600;
  }
  double lateness_of(const Plan& plan, double tokens_s) const {
    if (job_.aim.deadline_hours == 0) return 0;
    return std::max(0.0, hours_of(plan, tokens_s) / job_.aim.deadline_hours - 1);
  }

  FleetConfig fleet_of(const Counts& counts) const {
    FleetConfig fleet = fleet_;
    fleet.sites.clear();
    for (size_t site_idx = 0; site_idx < fleet_.sites.size(); ++site_idx) {
      std::vector<size_t> used;
      for (size_t i = 0; i < groups_.size(); ++i) {
        if (groups_[i].site_idx != site_idx) continue;
        used.insert(used.end(), groups_[i].devices.begin(), groups_[i].devices.begin() + counts[i]);
      }
      if (used.empty()) continue;
      std::ranges::sort(used);
      FleetSite site = fleet_.sites[site_idx];
      site.devices.clear();
      for (const size_t i : used) site.devices.push_back(fleet_.sites[site_idx].devices[i]);
      fleet.sites.push_back(std::move(site));
    }
    std::erase_if(fleet.links, [&](const FleetLink& link) {
      const auto is_here = [&](const std::string& name) {
        return std::ranges::any_of(fleet.sites,
                                   [&](const auto& site) { return site.name == name; });
      };
      return !is_here(link.from) || !is_here(link.to);
    });
    return fleet;
  }

  [[noreturn]] void refuse(const Counts& nearest, const Worth& worth) const {
    const AimConfig& aim = job_.aim;
    if (worth.tokens_s > 0) {
      const double hours = aim.deadline_hours * (1 + worth.excess);
      fail_usage(
          "plan.deadline_hours = {:g}: no plan is done by then; the fastest that keeps the "
          "other limits takes {:.4g} hours",
          aim.deadline_hours,
          hours);
    }
    double least_w = groups_.front().power_w;
    for (const Group& group : groups_) least_w = std::min(least_w, group.power_w);
    if (aim.max_watts > 0 && aim.max_watts < least_w) {
      fail_usage("plan.max_watts = {:g}: a single chip of this fleet draws {:g} W at least",
                 aim.max_watts,
                 least_w);
    }
    std::string limits;
    if (aim.max_watts > 0) limits += fmt::format(" plan.max_watts = {:g}", aim.max_watts);
    if (!aim.keep_free.empty()) {
      limits += fmt::format(" plan.keep_free = {}", fmt::join(aim.keep_free, ", "));
    }
    const std::string free = left_free(fleet_, fleet_of(nearest), catalogue_);
    fail_usage(
        "no part of the fleet that keeps{} can hold and train this model; the nearest that "
        "was tried draws {:g} W{}",
        limits,
        watts_of(nearest),
        free.empty() ? "" : " and leaves free " + free);
  }

  const JobConfig& job_;  // these outlive this
  const FleetConfig& fleet_;
  const chips::Catalogue& catalogue_;
  const Probe* probe_;
  double host_cores_;
  std::vector<Group> groups_;
  int64_t num_devices_ = 0;
  std::map<std::string, int64_t> keep_free_;  // by chip
  std::map<Counts, Worth> known_;
  struct Planned {
    Counts counts;
    Worth worth;
    Plan plan;
  };
  std::optional<Planned> best_;  // of all planned so far
  int64_t num_plans_ = 0;
};

}  // namespace

ChosenFleet choose_devices(const JobConfig& job,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue,
                           const Probe* probe,
                           double host_cores) {
  if (job.aim.is_plain()) {
    return {fleet, make_plan(job, fleet, catalogue, probe, host_cores), "", 1};
  }
  return Chooser(job, fleet, catalogue, probe, host_cores).choose();
}

}  // namespace pelago::plan
