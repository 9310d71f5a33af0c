#include "plan/simulation/run/run_play.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "plan/simulation/event_queue.h"
#include "plan/simulation/run/exchanges.h"
#include "plan/simulation/run/site_clock.h"

namespace pelago::plan {

namespace {

enum Kind : uint32_t {
  kMark,        // a site reaches its next mark
  kAfterPause,  // a snapshot is taken, or fetched state is there
  kFault,       // what: the kind
  kBack,        // a site has restarted
  kRepair,      // what: the kind whose chips come back
  kDrop,        // a site that is down is left out
  kSlow,        // a chip is slow for a while
  kLineFault,
  kLineRepair,
  kLineDrop,  // a line has been down for as long as an exchange waits
  kJoin,
  kLeave,
};

class RunPlay {
 public:
  RunPlay(const RunModel& model, const RunOptions& options)
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

  RunOutcome play() {
    begin();
    while (!queue_.is_empty() && queue_.first().at_s <= end_s_ && num_over_ < sites_.size()) {
      const Event event = queue_.pop();
      now_s_ = event.at_s;
      take(event);
    }
    if (std::isfinite(end_s_) && num_over_ < sites_.size()) now_s_ = end_s_;
    return finish();
  }

 private:
  static std::vector<double> capacities(const RunModel& model) {
    std::vector<double> capacities;
    for (const SimulatedLine& line : model.lines) capacities.push_back(line.bytes_s);
    return capacities;
  }

  void begin() {
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

  void foretell_fault(uint32_t site_idx, uint32_t kind_idx) {
    const FaultKind& kind = model_.faults.kinds[kind_idx];
    if (kind.mtbf_s <= 0) return;
    const double units =
        kind.chips_per_unit > 0 ? model_.sites[site_idx].chips / kind.chips_per_unit : 1;
    const double wait_s = next_exponential(kind.mtbf_s / units, fault_rngs_[site_idx][kind_idx]);
    queue_.push(now_s_ + wait_s, kFault, site_idx, kind_idx);
  }

  void foretell_slow(uint32_t site_idx) {
    if (model_.faults.slow_mtbf_s <= 0) return;
    const double mean_s = model_.faults.slow_mtbf_s / model_.sites[site_idx].chips;
    queue_.push(now_s_ + next_exponential(mean_s, slow_rngs_[site_idx]), kSlow, site_idx);
  }

  void take(const Event& event) {
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

  // ---- steps

  double step_length_s(uint32_t site_idx) {
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

  void begin_step(uint32_t site_idx) {
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

  void foretell_mark(uint32_t site_idx) {
    const SiteClock& clock = sites_[site_idx];
    const double at_s =
        clock.step_begin_s + clock.marks[clock.next_mark].at_ratio * clock.step_length_s;
    queue_.push(std::max(at_s, now_s_), kMark, site_idx, 0, clock.version);
  }

  void pass_marks(uint32_t site_idx) {
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

  /// What a site waits for: nothing if it takes no part.
  bool is_there(uint32_t site_idx, const Mark& mark) {
    const Exchange* exchange = exchanges_.find(mark.exchange_idx, mark.number);
    return exchange == nullptr || exchange->is_member[site_idx] == 0 ||
           exchange->arrived_s[mark.part_idx] >= 0;
  }

  void end_step(uint32_t site_idx) {
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

  void on_arrive(const Event& event) {
    uint32_t part_idx = 0;
    if (exchanges_.on_arrive(event, part_idx) == nullptr) return;
    wake_waiting();
  }

  void wake_waiting() {
    for (uint32_t i = 0; i < sites_.size(); ++i) {
      SiteClock& clock = sites_[i];
      if (clock.activity != Activity::kWaiting || !is_there(i, clock.marks[clock.next_mark])) {
        continue;
      }
      if (options_.trace != nullptr && now_s_ > clock.since_s) {
        options_.trace->add(tracks_[i], "wait", SpanKind::kWait, clock.since_s, now_s_);
      }
      clock.step_begin_s += now_s_ - clock.since_s;
      clock.change(Activity::kComputing, now_s_);
      queue_.push(now_s_, kMark, i, 0, clock.version);
    }
  }

  /// A span of computing; name empty: of the steps since the last one.
  void add_span(uint32_t site_idx, double begin_s, const std::string& name) {
    SiteClock& clock = sites_[site_idx];
    if (options_.trace == nullptr || now_s_ <= begin_s) return;
    const std::string text = !name.empty() ? name : fmt::format("to step {}", clock.step);
    options_.trace->add(tracks_[site_idx], text, SpanKind::kCompute, begin_s, now_s_);
  }

  // ---- who is there

  /// Sites that an exchange taken in this step counts on: those that are there, have not passed the
  /// step, as one that came back may have, and are not behind a dead line.
  std::vector<uint8_t> members_at(int64_t step) const {
    std::vector<uint8_t> members = is_present_;
    for (size_t i = 0; i < sites_.size(); ++i) {
      if (sites_[i].step > step) members[i] = 0;
    }
    for (size_t i = 0; i < model_.lines.size(); ++i) {
      if (line_is_down_[i] == 2) members[std::max(model_.lines[i].from, model_.lines[i].to)] = 0;
    }
    return members;
  }

  /// The furthest step of the other sites that are at work; below 0: there is none.
  int64_t step_of_others(uint32_t site_idx) const {
    int64_t step = -1;
    for (uint32_t i = 0; i < sites_.size(); ++i) {
      const bool works =
          sites_[i].activity == Activity::kComputing || sites_[i].activity == Activity::kWaiting;
      if (i != site_idx && works) step = std::max(step, sites_[i].step);
    }
    return step;
  }

  void drop(size_t site_idx) {
    is_present_[site_idx] =
        sites_[site_idx].activity == Activity::kDown ? 0 : is_present_[site_idx];
    const int64_t num_dropped = exchanges_.drop_member(site_idx, now_s_);
    outcome_.num_left_out += num_dropped;
    sites_[site_idx].missed_exchange = true;
    wake_waiting();
  }

  void join(uint32_t site_idx) {
    if (sites_[site_idx].is_over) return;
    sites_[site_idx].missed_exchange = true;
    sites_[site_idx].change(Activity::kDown, now_s_);
    come_back(site_idx);
  }

  void leave(uint32_t site_idx) {
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

  // ---- faults

  void on_fault(uint32_t site_idx, uint32_t kind_idx) {
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

  void on_repair(uint32_t site_idx, uint32_t kind_idx) {
    SiteClock& clock = sites_[site_idx];
    const bool was_short = is_short(site_idx);
    clock.chips_lost = std::max(0.0, clock.chips_lost - model_.faults.kinds[kind_idx].chips_lost);
    if (was_short && !is_short(site_idx) && clock.activity == Activity::kDown) {
      clock.version += 1;
      queue_.push(now_s_ + model_.faults.restart_s, kBack, site_idx, 0, clock.version);
    }
  }

  bool is_short(uint32_t site_idx) const {
    return sites_[site_idx].pace(model_.sites[site_idx], model_.faults.spares) <
           model_.faults.least_share;
  }

  /// Of the fragments, those that the others have merged since it was there.
  double missed_share(const SiteClock& clock, int64_t others) const {
    if (clock.outcome.steps == 0) return 1;
    const auto missed_steps = static_cast<double>(others + 1 - clock.snapshot_step);
    double missed = 0, all = 0;
    for (const ScheduledExchange& exchange : model_.exchange.schedule) {
      missed += std::min(1.0, missed_steps / static_cast<double>(exchange.period_steps));
      all += 1;
    }
    return all > 0 ? std::max(0.0, missed) / all : 0;
  }

  void come_back(uint32_t site_idx) {
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
      if (bytes_s > 0)
        fetch_s = missed_share(clock, others) * model_.exchange.state_bytes / bytes_s;
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

  void on_line_fault(uint32_t line_idx) {
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

  void on_line_repair(uint32_t line_idx) {
    line_is_down_[line_idx] = 0;
    lines_.set_capacity(line_idx, model_.lines[line_idx].bytes_s, now_s_);
    exchanges_.foretell();
    queue_.push(now_s_ + next_exponential(model_.faults.line_mtbf_s, line_rngs_[line_idx]),
                kLineFault,
                line_idx);
  }

  // ---- the end

  RunOutcome finish() {
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

  const RunModel& model_;
  const RunOptions& options_;
  Rng rng_;
  EventQueue queue_;
  LineNetwork lines_;
  Exchanges exchanges_;
  Rng noise_;
  std::vector<std::vector<Rng>> fault_rngs_;
  std::vector<Rng> slow_rngs_, line_rngs_;
  std::vector<SiteClock> sites_;
  std::vector<uint8_t> is_present_;
  std::vector<uint8_t> line_is_down_;  // 1: since less than the grace; 2: exchanges go without it
  std::vector<int64_t> line_faults_;
  std::vector<uint32_t> tracks_;
  size_t num_over_ = 0;
  double now_s_ = 0, end_s_ = 0;
  RunOutcome outcome_;
};

}  // namespace

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
  return RunPlay(model, options).play();
}

}  // namespace pelago::plan
