#include "plan/simulation/run/exchanges.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace pelago::plan {

namespace {

// A site that was away may ask for exchanges that are over; so many of a fragment are kept.
constexpr size_t kKept = 4;
// An exchange's number has 32 bits of a flow's tag.
constexpr int64_t kNumbers = int64_t{1} << 32;

uint64_t tag_of(uint32_t exchange_idx, int64_t number) {
  return (uint64_t{exchange_idx} << 32U) | static_cast<uint64_t>(number);
}

}  // namespace

Exchanges::Exchanges(
    const RunModel& model, EventQueue& queue, LineNetwork& lines, Rng rng, Trace* trace)
    : model_(model),
      queue_(queue),
      lines_(lines),
      rng_(rng),
      num_sites_(model.sites.size()),
      line_idx_(num_sites_ * num_sites_, -1),
      trace_(trace),
      tracks_(model.lines.size(), UINT32_MAX),
      under_way_(model.exchange.schedule.size()) {
  for (size_t i = 0; i < model.lines.size(); ++i) {
    line_idx_[model.lines[i].from * num_sites_ + model.lines[i].to] = static_cast<int>(i);
  }
}

Exchange* Exchanges::find(size_t exchange_idx, int64_t number) {
  for (Exchange& exchange : under_way_[exchange_idx]) {
    if (exchange.number == number) return &exchange;
  }
  return nullptr;
}

Exchange& Exchanges::get(size_t exchange_idx,
                         int64_t number,
                         const std::vector<uint8_t>& is_present) {
  PELAGO_ASSERT(number < kNumbers, "a run has fewer exchanges");
  if (Exchange* found = find(exchange_idx, number)) return *found;
  std::deque<Exchange>& all = under_way_[exchange_idx];
  while (all.size() >= kKept && all.front().is_done) all.pop_front();
  Exchange exchange;
  exchange.number = number;
  exchange.is_member = is_present;
  exchange.num_ready.assign(num_sites_, 0);
  exchange.arrived_s.assign(model_.exchange.schedule[exchange_idx].parts.size(), -1.0);
  return all.emplace_back(std::move(exchange));
}

std::vector<size_t> Exchanges::members(const Exchange& exchange) const {
  std::vector<size_t> members;
  for (size_t i = 0; i < num_sites_; ++i) {
    if (exchange.is_member[i] != 0) members.push_back(i);
  }
  return members;
}

void Exchanges::give(size_t exchange_idx, Exchange& exchange, size_t site_idx, double now_s) {
  exchange.num_ready[site_idx] += 1;
  advance(static_cast<uint32_t>(exchange_idx), exchange, now_s);
}

void Exchanges::advance(uint32_t exchange_idx, Exchange& exchange, double now_s) {
  if (!exchange.flows.empty() || exchange.is_done) return;
  const auto num_parts = static_cast<uint32_t>(exchange.arrived_s.size());
  while (exchange.num_begun < num_parts && exchange.flows.empty()) {
    bool is_ready = false;
    for (size_t i = 0; i < num_sites_; ++i) {
      if (exchange.is_member[i] == 0) continue;
      is_ready = exchange.num_ready[i] > exchange.num_begun;
      if (!is_ready) return;
    }
    if (!is_ready) return;  // nobody is left
    if (exchange.begun_s < 0) exchange.begun_s = now_s;
    exchange.num_begun += 1;
    begin_part(exchange_idx, exchange, now_s);
  }
}

double Exchanges::delay_s(const Exchange& exchange) const {
  double one_way_s = 0, num_members = 0;
  for (const size_t from : members(exchange)) {
    num_members += 1;
    for (const size_t to : members(exchange)) {
      const int line = from == to ? -1 : line_between(from, to);
      if (line >= 0)
        one_way_s = std::max(one_way_s, model_.lines[static_cast<size_t>(line)].delay_s);
    }
  }
  switch (model_.exchange.pattern) {
    case ExchangePattern::kRing:
      return 2 * (num_members - 1) * one_way_s;
    case ExchangePattern::kAllGather:
      return 2 * one_way_s;  // deltas; the word that all have them
    case ExchangePattern::kAllToAll:
      return 3 * one_way_s;  // deltas, means, the word
  }
  return 0;
}

void Exchanges::begin_flow(
    std::vector<uint32_t> crossed, double bytes, uint64_t tag, Exchange& exchange, double now_s) {
  double factor = 1;
  for (const uint32_t line_idx : crossed) {
    const SimulatedLine& line = model_.lines[line_idx];
    double slower = 1 / (1 - line.loss);
    if (line.rate_deviation > 0) slower *= std::exp(line.rate_deviation * rng_.next_normal());
    factor = std::max(factor, slower);
    if (crossed.size() == 1) factor = slower;
  }
  exchange.flows.push_back(lines_.begin(std::move(crossed), bytes * factor, tag, now_s));
  foretell();
}

void Exchanges::begin_part(uint32_t exchange_idx, Exchange& exchange, double now_s) {
  const std::vector<size_t> with = members(exchange);
  const auto count = static_cast<double>(with.size());
  const uint64_t tag = tag_of(exchange_idx, exchange.number);
  const uint32_t part_idx = exchange.num_begun - 1;
  const double bytes = model_.exchange.schedule[exchange_idx].parts[part_idx].bytes;
  if (with.size() < 2 || bytes <= 0) {
    queue_.push(now_s, kArrive, exchange_idx, part_idx, static_cast<uint32_t>(exchange.number));
    return;
  }
  if (model_.exchange.pattern == ExchangePattern::kRing) {
    std::vector<uint32_t> ring;
    for (size_t i = 0; i < with.size(); ++i) {
      ring.push_back(static_cast<uint32_t>(line_between(with[i], with[(i + 1) % with.size()])));
    }
    return begin_flow(std::move(ring), 2 * (count - 1) / count * bytes, tag, exchange, now_s);
  }
  const bool is_summed = model_.exchange.pattern == ExchangePattern::kAllToAll;
  for (const size_t from : with) {
    for (const size_t to : with) {
      if (from == to) continue;
      begin_flow({static_cast<uint32_t>(line_between(from, to))},
                 is_summed ? 2 / count * bytes : bytes,
                 tag,
                 exchange,
                 now_s);
    }
  }
}

void Exchanges::foretell() {
  for (const uint32_t flow_idx : lines_.changed()) {
    const double end_s = lines_.end_s(flow_idx);
    if (std::isfinite(end_s)) {
      queue_.push(end_s, kFlowEnd, flow_idx, 0, lines_.flow(flow_idx).version);
    }
  }
}

void Exchanges::add_spans(const LineNetwork::Flow& flow, double now_s) {
  if (trace_ == nullptr) return;
  for (const uint32_t line_idx : flow.lines) {
    const SimulatedLine& line = model_.lines[line_idx];
    if (tracks_[line_idx] == UINT32_MAX) {
      tracks_[line_idx] = trace_->add_track(
          "lines", model_.sites[line.from].name + " to " + model_.sites[line.to].name);
    }
    trace_->add(tracks_[line_idx],
                fmt::format("fragment {}", flow.tag >> 32U),
                SpanKind::kLine,
                flow.begun_s,
                now_s);
  }
}

bool Exchanges::on_flow_end(const Event& event) {
  const LineNetwork::Flow& flow = lines_.flow(event.who);
  if (!flow.is_live || flow.version != event.version) return false;
  const uint64_t tag = flow.tag;
  add_spans(flow, event.at_s);
  lines_.end(event.who, event.at_s);
  foretell();
  const auto exchange_idx = static_cast<uint32_t>(tag >> 32U);
  Exchange* exchange =
      find(exchange_idx, static_cast<int64_t>(tag & (static_cast<uint64_t>(kNumbers) - 1)));
  PELAGO_ASSERT(exchange != nullptr, "a flow is of an exchange that is under way");
  std::erase(exchange->flows, event.who);
  if (!exchange->flows.empty()) return true;
  const uint32_t part_idx = exchange->num_begun - 1;
  const double bytes = model_.exchange.schedule[exchange_idx].parts[part_idx].bytes;
  const double codec_s =
      model_.exchange.codec_bytes_s > 0 ? bytes / model_.exchange.codec_bytes_s : 0;
  queue_.push(event.at_s + delay_s(*exchange) + codec_s,
              kArrive,
              exchange_idx,
              part_idx,
              static_cast<uint32_t>(exchange->number));
  advance(exchange_idx, *exchange, event.at_s);
  return true;
}

Exchange* Exchanges::on_arrive(const Event& event, uint32_t& part_idx) {
  Exchange* exchange = find(event.who, event.version);
  part_idx = event.what;
  if (exchange == nullptr || exchange->arrived_s[part_idx] >= 0) return nullptr;
  exchange->arrived_s[part_idx] = event.at_s;
  if (part_idx + 1 == exchange->arrived_s.size()) {
    exchange->is_done = true;
    seconds_.push_back(event.at_s - exchange->begun_s);
  }
  return exchange;
}

int64_t Exchanges::drop_member(size_t site_idx, double now_s) {
  int64_t num_dropped = 0;
  for (uint32_t exchange_idx = 0; exchange_idx < under_way_.size(); ++exchange_idx) {
    for (Exchange& exchange : under_way_[exchange_idx]) {
      if (exchange.is_done || exchange.is_member[site_idx] == 0) continue;
      exchange.is_member[site_idx] = 0;
      num_dropped += 1;
      if (!exchange.flows.empty()) {
        for (const uint32_t flow : exchange.flows) {
          add_spans(lines_.flow(flow), now_s);
          lines_.end(flow, now_s);
          foretell();
        }
        exchange.flows.clear();
        if (!members(exchange).empty()) begin_part(exchange_idx, exchange, now_s);
      }
      advance(exchange_idx, exchange, now_s);
    }
  }
  return num_dropped;
}

}  // namespace pelago::plan
