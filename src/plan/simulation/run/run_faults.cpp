// Faults, repairs, sites that come and go, and who counts on whom meanwhile.
#include <algorithm>

#include "plan/simulation/run/run_machine.h"

namespace pelago::plan {

std::vector<uint8_t> RunMachine::members_at(int64_t step) const {
  std::vector<uint8_t> members = is_present_;
  for (size_t i = 0; i < sites_.size(); ++i) {
    if (sites_[i].step > step) members[i] = 0;
  }
  for (size_t i = 0; i < model_.lines.size(); ++i) {
    if (line_is_down_[i] == 2) members[std::max(model_.lines[i].from, model_.lines[i].to)] = 0;
  }
  return members;
}

int64_t RunMachine::step_of_others(uint32_t site_idx) const {
  int64_t step = -1;
  for (uint32_t i = 0; i < sites_.size(); ++i) {
    const bool works =
        sites_[i].activity == Activity::kComputing || sites_[i].activity == Activity::kWaiting;
    if (i != site_idx && works) step = std::max(step, sites_[i].step);
  }
  return step;
}

void RunMachine::drop(size_t site_idx) {
  is_present_[site_idx] = sites_[site_idx].activity == Activity::kDown ? 0 : is_present_[site_idx];
  const int64_t num_dropped = exchanges_.drop_member(site_idx, now_s_);
  outcome_.num_left_out += num_dropped;
  sites_[site_idx].missed_exchange = true;
  wake_waiting();
}

void RunMachine::join(uint32_t site_idx) {
  if (sites_[site_idx].is_over) return;
  sites_[site_idx].missed_exchange = true;
  sites_[site_idx].change(Activity::kDown, now_s_);
  come_back(site_idx);
}

void RunMachine::leave(uint32_t site_idx) {
  SiteClock& clock = sites_[site_idx];
  if (clock.is_over) return;
  clock.change(Activity::kAway, now_s_);
  clock.version += 1;
  clock.is_over = true;
  is_present_[site_idx] = 0;
  num_over_ += 1;
  exchanges_.drop_member(site_idx, now_s_);
  wake_waiting();
}

void RunMachine::on_fault(uint32_t site_idx, uint32_t kind_idx) {
  foretell_fault(site_idx, kind_idx);
  SiteClock& clock = sites_[site_idx];
  if (clock.is_over || clock.activity == Activity::kAway) return;
  const FaultKind& kind = model_.faults.kinds[kind_idx];
  outcome_.faults[kind_idx].count += 1;
  clock.outcome.num_faults += 1;
  if (kind.chips_lost > 0 && kind.repair_s > 0) {
    clock.chips_lost = std::min(clock.chips_lost + kind.chips_lost, model_.sites[site_idx].chips);
    queue_.push(now_s_ + kind.repair_s, kRepair, site_idx, kind_idx);
  }
  const bool was_down = clock.activity == Activity::kDown;
  if (!was_down) {
    if (clock.activity == Activity::kComputing) add_span(site_idx, clock.since_s, "");
    clock.change(Activity::kDown, now_s_);
    clock.lose_fresh_work();
  }
  if (options_.trace != nullptr) {
    options_.trace->add(tracks_[site_idx],
                        kind.name + " fails",
                        SpanKind::kDown,
                        now_s_,
                        now_s_ + model_.faults.detect_s);
  }
  clock.version += 1;
  const double unheard_s = std::min(model_.faults.detect_s, model_.exchange.grace_s);
  if (is_present_[site_idx] != 0) {
    queue_.push(now_s_ + unheard_s, kDrop, site_idx, 0, clock.version);
  }
  double back_s = model_.faults.detect_s + model_.faults.restart_s;
  if (kind.stops_site_until_repair) back_s = std::max(back_s, kind.repair_s);
  queue_.push(now_s_ + back_s, kBack, site_idx, 0, clock.version);
}

void RunMachine::on_repair(uint32_t site_idx, uint32_t kind_idx) {
  SiteClock& clock = sites_[site_idx];
  const bool was_short = is_short(site_idx);
  clock.chips_lost = std::max(0.0, clock.chips_lost - model_.faults.kinds[kind_idx].chips_lost);
  if (was_short && !is_short(site_idx) && clock.activity == Activity::kDown) {
    clock.version += 1;
    queue_.push(now_s_ + model_.faults.restart_s, kBack, site_idx, 0, clock.version);
  }
}

bool RunMachine::is_short(uint32_t site_idx) const {
  return sites_[site_idx].pace(model_.sites[site_idx], model_.faults.spares) <
         model_.faults.least_share;
}

double RunMachine::missed_share(const SiteClock& clock, int64_t others) const {
  if (clock.outcome.steps == 0) return 1;
  const auto missed_steps = static_cast<double>(others + 1 - clock.snapshot_step);
  double missed = 0, all = 0;
  for (const ScheduledExchange& exchange : model_.exchange.schedule) {
    missed += std::min(1.0, missed_steps / static_cast<double>(exchange.period_steps));
    all += 1;
  }
  return all > 0 ? std::max(0.0, missed) / all : 0;
}

void RunMachine::come_back(uint32_t site_idx) {
  SiteClock& clock = sites_[site_idx];
  if (is_short(site_idx)) return;  // a repair brings it back
  const int64_t others = step_of_others(site_idx);
  // What it lacks comes over its fastest line from a site that is there.
  double fetch_s = 0;
  if (clock.missed_exchange && others >= 0 && model_.exchange.state_bytes > 0) {
    double bytes_s = 0;
    for (size_t i = 0; i < model_.lines.size(); ++i) {
      const SimulatedLine& line = model_.lines[i];
      if (line.to == site_idx && is_present_[line.from] != 0 && line_is_down_[i] == 0) {
        bytes_s = std::max(bytes_s, line.bytes_s * (1 - line.loss));
      }
    }
    if (bytes_s > 0) fetch_s = missed_share(clock, others) * model_.exchange.state_bytes / bytes_s;
  }
  clock.missed_exchange = false;
  if (fetch_s > 0) {
    clock.version += 1;
    queue_.push(now_s_ + fetch_s, kBack, site_idx, 0, clock.version);
    return;
  }
  if (options_.trace != nullptr) {
    options_.trace->add(tracks_[site_idx], "restart", SpanKind::kDown, clock.since_s, now_s_);
  }
  is_present_[site_idx] = 1;
  clock.step = others >= 0 ? std::max(others + 1, clock.snapshot_step) : clock.snapshot_step;
  clock.take_snapshot(clock.step);
  begin_step(site_idx);
}

void RunMachine::on_line_fault(uint32_t line_idx) {
  if (line_is_down_[line_idx] != 0) return;
  line_is_down_[line_idx] = 1;
  outcome_.faults.back().count += 1;
  line_faults_.resize(model_.lines.size(), 0);
  line_faults_[line_idx] += 1;
  lines_.set_capacity(line_idx, 0, now_s_);
  exchanges_.foretell();
  queue_.push(now_s_ + model_.exchange.grace_s, kLineDrop, line_idx);
  queue_.push(now_s_ + model_.faults.line_repair_s, kLineRepair, line_idx);
}

void RunMachine::on_line_repair(uint32_t line_idx) {
  line_is_down_[line_idx] = 0;
  lines_.set_capacity(line_idx, model_.lines[line_idx].bytes_s, now_s_);
  exchanges_.foretell();
  queue_.push(now_s_ + next_exponential(model_.faults.line_mtbf_s, line_rngs_[line_idx]),
              kLineFault,
              line_idx);
}

}  // namespace pelago::plan
