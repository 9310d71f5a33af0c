#include "plan/simulation/run/run_play.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "plan/simulation/run/run_machine.h"

namespace pelago::plan {

RunMachine::RunMachine(const RunModel& model, const RunOptions& options)
    : model_(model),
      options_(options),
      rng_(options.seed),
      lines_(capacities(model)),
      exchanges_(model, queue_, lines_, Rng(options.seed).fork("lines"), options.trace),
      noise_(Rng(options.seed).fork("noise")),
      sites_(model.sites.size()),
      is_present_(model.sites.size(), 0),
      line_is_down_(model.lines.size(), 0) {
  end_s_ = options.hours > 0 ? options.hours * 3600 : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < sites_.size(); ++i) {
    sites_[i].outcome.name = model.sites[i].name;
    if (options.trace != nullptr) {
      tracks_.push_back(options.trace->add_track("sites", model.sites[i].name));
    }
  }
  for (const FaultKind& kind : model.faults.kinds) outcome_.faults.push_back({kind.name, 0});
  outcome_.faults.push_back({"line", 0});
}

RunOutcome RunMachine::play() {
  begin();
  while (!queue_.is_empty() && queue_.first().at_s <= end_s_ && num_over_ < sites_.size()) {
    const Event event = queue_.pop();
    now_s_ = event.at_s;
    take(event);
  }
  if (std::isfinite(end_s_) && num_over_ < sites_.size()) now_s_ = end_s_;
  return finish();
}

std::vector<double> RunMachine::capacities(const RunModel& model) {
  std::vector<double> capacities;
  for (const SimulatedLine& line : model.lines) capacities.push_back(line.bytes_s);
  return capacities;
}

void RunMachine::begin() {
  for (uint32_t i = 0; i < sites_.size(); ++i) {
    const SimulatedSite& site = model_.sites[i];
    if (site.joins_at_s > 0) {
      queue_.push(site.joins_at_s, kJoin, i);
    } else {
      is_present_[i] = 1;
    }
    if (site.leaves_at_s >= 0) queue_.push(site.leaves_at_s, kLeave, i);
    fault_rngs_.emplace_back();
    for (uint32_t k = 0; k < model_.faults.kinds.size(); ++k) {
      fault_rngs_[i].push_back(rng_.fork("fault " + model_.faults.kinds[k].name, i));
      foretell_fault(i, k);
    }
    slow_rngs_.push_back(rng_.fork("slow", i));
    foretell_slow(i);
  }
  for (uint32_t i = 0; i < model_.lines.size(); ++i) {
    line_rngs_.push_back(rng_.fork("line", i));
    if (model_.faults.line_mtbf_s > 0) {
      queue_.push(next_exponential(model_.faults.line_mtbf_s, line_rngs_[i]), kLineFault, i);
    }
  }
  for (uint32_t i = 0; i < sites_.size(); ++i) {
    if (is_present_[i] != 0) begin_step(i);
  }
}

void RunMachine::foretell_fault(uint32_t site_idx, uint32_t kind_idx) {
  const FaultKind& kind = model_.faults.kinds[kind_idx];
  if (kind.mtbf_s <= 0) return;
  const double units =
      kind.chips_per_unit > 0 ? model_.sites[site_idx].chips / kind.chips_per_unit : 1;
  const double wait_s = next_exponential(kind.mtbf_s / units, fault_rngs_[site_idx][kind_idx]);
  queue_.push(now_s_ + wait_s, kFault, site_idx, kind_idx);
}

void RunMachine::foretell_slow(uint32_t site_idx) {
  if (model_.faults.slow_mtbf_s <= 0) return;
  const double mean_s = model_.faults.slow_mtbf_s / model_.sites[site_idx].chips;
  queue_.push(now_s_ + next_exponential(mean_s, slow_rngs_[site_idx]), kSlow, site_idx);
}

void RunMachine::take(const Event& event) {
  switch (event.kind) {
    case kMark:
      if (event.version == sites_[event.who].version) pass_marks(event.who);
      break;
    case kAfterPause:
      if (event.version == sites_[event.who].version) begin_step(event.who);
      break;
    case kFault:
      on_fault(event.who, event.what);
      break;
    case kBack:
      if (event.version == sites_[event.who].version) come_back(event.who);
      break;
    case kRepair:
      on_repair(event.who, event.what);
      break;
    case kDrop:
      if (event.version == sites_[event.who].version) drop(event.who);
      break;
    case kSlow:
      sites_[event.who].slow_until_s = now_s_ + model_.faults.slow_s;
      foretell_slow(event.who);
      break;
    case kLineFault:
      on_line_fault(event.who);
      break;
    case kLineRepair:
      on_line_repair(event.who);
      break;
    case kLineDrop:
      if (line_is_down_[event.who] == 1) {
        line_is_down_[event.who] = 2;
        drop(std::max(model_.lines[event.who].from, model_.lines[event.who].to));
      }
      break;
    case kJoin:
      join(event.who);
      break;
    case kLeave:
      leave(event.who);
      break;
    case Exchanges::kFlowEnd:
      exchanges_.on_flow_end(event);
      break;
    case Exchanges::kArrive:
      on_arrive(event);
      break;
    default:
      PELAGO_ASSERT(false, "every event has a kind");
  }
}

double RunMachine::step_length_s(uint32_t site_idx) {
  const SimulatedSite& site = model_.sites[site_idx];
  SiteClock& clock = sites_[site_idx];
  double length_s =
      options_.step_seconds ? options_.step_seconds(site_idx, clock.step) : site.step_s;
  if (now_s_ < clock.slow_until_s) length_s *= model_.faults.slow_factor;
  if (model_.faults.step_deviation > 0) {
    length_s *=
        std::max(0.1, 1 + model_.faults.step_deviation * largest_normal(site.chips, noise_));
  }
  return length_s;
}

void RunMachine::begin_step(uint32_t site_idx) {
  SiteClock& clock = sites_[site_idx];
  if (clock.is_over) return;
  if (options_.steps > 0 && clock.step >= options_.steps) {
    clock.change(Activity::kAway, now_s_);
    clock.is_over = true;
    is_present_[site_idx] = 0;
    num_over_ += 1;
    return;
  }
  if (clock.activity != Activity::kComputing) clock.change(Activity::kComputing, now_s_);
  clock.step_begin_s = now_s_;
  clock.step_length_s = step_length_s(site_idx);
  clock.marks = marks_of_step(model_.sites[site_idx], model_.exchange.schedule, clock.step);
  clock.next_mark = 0;
  foretell_mark(site_idx);
}

void RunMachine::foretell_mark(uint32_t site_idx) {
  const SiteClock& clock = sites_[site_idx];
  const double at_s =
      clock.step_begin_s + clock.marks[clock.next_mark].at_ratio * clock.step_length_s;
  queue_.push(std::max(at_s, now_s_), kMark, site_idx, 0, clock.version);
}

void RunMachine::pass_marks(uint32_t site_idx) {
  SiteClock& clock = sites_[site_idx];
  const double ratio = clock.marks[clock.next_mark].at_ratio;
  while (clock.next_mark < clock.marks.size() && clock.marks[clock.next_mark].at_ratio <= ratio) {
    const Mark& mark = clock.marks[clock.next_mark];
    if (mark.kind == Mark::Kind::kEnd) return end_step(site_idx);
    if (mark.kind == Mark::Kind::kNeed && !is_there(site_idx, mark)) {
      add_span(site_idx, clock.since_s, "");
      clock.change(Activity::kWaiting, now_s_);
      return;
    }
    clock.next_mark += 1;
    if (mark.kind == Mark::Kind::kGive) {
      Exchange& exchange = exchanges_.get(mark.exchange_idx, mark.number, members_at(clock.step));
      if (exchange.is_member[site_idx] != 0) {
        exchanges_.give(mark.exchange_idx, exchange, site_idx, now_s_);
      }
    }
  }
  foretell_mark(site_idx);
}

bool RunMachine::is_there(uint32_t site_idx, const Mark& mark) {
  const Exchange* exchange = exchanges_.find(mark.exchange_idx, mark.number);
  return exchange == nullptr || exchange->is_member[site_idx] == 0 ||
         exchange->arrived_s[mark.part_idx] >= 0;
}

void RunMachine::end_step(uint32_t site_idx) {
  SiteClock& clock = sites_[site_idx];
  const SimulatedSite& site = model_.sites[site_idx];
  if (options_.trace != nullptr && clock.step < options_.trace_steps_max) {
    add_span(site_idx, clock.since_s, fmt::format("step {}", clock.step));
  }
  clock.change(Activity::kComputing, now_s_);
  const double tokens = site.tokens * clock.pace(site, model_.faults.spares);
  clock.outcome.tokens += tokens;
  clock.outcome.steps += 1;
  clock.fresh_tokens += tokens;
  clock.fresh_steps += 1;
  clock.step += 1;
  const int64_t every = model_.faults.snapshot_every_steps;
  if (every > 0 && clock.step % every == 0) {
    clock.take_snapshot(clock.step);
    if (model_.faults.snapshot_s > 0) {
      clock.outcome.snapshot_s += model_.faults.snapshot_s;
      clock.since_s += model_.faults.snapshot_s;  // it is nobody's computing
      queue_.push(now_s_ + model_.faults.snapshot_s, kAfterPause, site_idx, 0, clock.version);
      return;
    }
  }
  begin_step(site_idx);
}

void RunMachine::on_arrive(const Event& event) {
  uint32_t part_idx = 0;
  if (exchanges_.on_arrive(event, part_idx) == nullptr) return;
  wake_waiting();
}

void RunMachine::wake_waiting() {
  for (uint32_t i = 0; i < sites_.size(); ++i) {
    SiteClock& clock = sites_[i];
    if (clock.activity != Activity::kWaiting || !is_there(i, clock.marks[clock.next_mark])) {
      continue;
    }
    if (options_.trace != nullptr && now_s_ > clock.since_s) {
      options_.trace->add(tracks_[i], "wait", SpanKind::kWait, clock.since_s, now_s_);
    }
    const Mark& mark = clock.marks[clock.next_mark];
    if (const Exchange* exchange = exchanges_.find(mark.exchange_idx, mark.number)) {
      const double begun_s = exchange->begun_s < 0 ? now_s_ : exchange->begun_s;
      clock.outcome.behind_s += std::max(0.0, std::min(begun_s, now_s_) - clock.since_s);
    }
    clock.step_begin_s += now_s_ - clock.since_s;
    clock.change(Activity::kComputing, now_s_);
    queue_.push(now_s_, kMark, i, 0, clock.version);
  }
}

void RunMachine::add_span(uint32_t site_idx, double begin_s, const std::string& name) {
  SiteClock& clock = sites_[site_idx];
  if (options_.trace == nullptr || now_s_ <= begin_s) return;
  const std::string text = !name.empty() ? name : fmt::format("to step {}", clock.step);
  options_.trace->add(tracks_[site_idx], text, SpanKind::kCompute, begin_s, now_s_);
}

RunOutcome RunMachine::finish() {
  outcome_.played_s = now_s_;
  for (uint32_t i = 0; i < sites_.size(); ++i) {
    SiteClock& clock = sites_[i];
    if (!clock.is_over && clock.activity == Activity::kComputing) {
      add_span(i, clock.since_s, "");
    }
    clock.since_s = std::min(clock.since_s, now_s_);
    clock.change(Activity::kAway, now_s_);
    const SimulatedSite& site = model_.sites[i];
    const double left_s = site.leaves_at_s >= 0 ? std::min(site.leaves_at_s, now_s_) : now_s_;
    outcome_.tokens += clock.outcome.tokens;
    outcome_.ideal_tokens += std::max(0.0, left_s - site.joins_at_s) / site.step_s * site.tokens;
    outcome_.sites.push_back(clock.outcome);
  }
  for (uint32_t i = 0; i < model_.lines.size(); ++i) {
    outcome_.lines.push_back({model_.lines[i].from,
                              model_.lines[i].to,
                              lines_.carried_bytes(i),
                              lines_.busy_s(i, now_s_),
                              i < line_faults_.size() ? line_faults_[i] : 0});
  }
  outcome_.exchange_s = exchanges_.seconds();
  outcome_.num_events = queue_.num_popped();
  return std::move(outcome_);
}

double RunOutcome::compute_utilisation() const {
  double computing_s = 0, all_s = 0;
  for (const SiteOutcome& site : sites) {
    computing_s += site.computing_s;
    all_s += site.computing_s + site.waiting_s + site.snapshot_s;
  }
  return all_s > 0 ? computing_s / all_s : 0;
}

RunOutcome play_run(const RunModel& model, const RunOptions& options) {
  check_model(model);
  PELAGO_ASSERT(options.steps > 0 || options.hours > 0, "a run ends");
  return RunMachine(model, options).play();
}

}  // namespace pelago::plan
