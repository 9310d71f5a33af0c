#include "plan/simulation/run/lines.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace pelago::plan {

LineNetwork::LineNetwork(std::vector<double> capacities) {
  for (const double capacity : capacities) lines_.emplace_back().capacity = capacity;
}

void LineNetwork::settle(Flow& flow, double now_s) {
  const double moved = std::min(flow.left_bytes, flow.pace * (now_s - flow.since_s));
  flow.left_bytes -= moved;
  flow.since_s = now_s;
  for (const uint32_t line : flow.lines) lines_[line].carried_bytes += moved;
}

uint32_t LineNetwork::begin(std::vector<uint32_t> lines, double bytes, uint64_t tag, double now_s) {
  PELAGO_ASSERT(!lines.empty(), "a flow crosses a line");
  uint32_t idx = 0;
  if (free_.empty()) {
    idx = static_cast<uint32_t>(flows_.size());
    flows_.emplace_back();
    flow_seen_.push_back(0);
  } else {
    idx = free_.back();
    free_.pop_back();
  }
  Flow& flow = flows_[idx];
  const uint32_t version = flow.version + 1;
  flow = {std::move(lines), bytes, 0, now_s, now_s, version, tag, true};
  for (const uint32_t line : flow.lines) {
    if (lines_[line].flows.empty()) lines_[line].busy_since_s = now_s;
    lines_[line].flows.push_back(idx);
  }
  share(flow.lines, now_s);
  return idx;
}

void LineNetwork::end(uint32_t flow_idx, double now_s) {
  Flow& flow = flows_[flow_idx];
  PELAGO_ASSERT(flow.is_live, "a flow ends once");
  settle(flow, now_s);
  flow.is_live = false;
  flow.version += 1;
  flow.pace = 0;
  for (const uint32_t line_idx : flow.lines) {
    Line& line = lines_[line_idx];
    std::erase(line.flows, flow_idx);
    if (line.flows.empty()) line.busy_s += now_s - line.busy_since_s;
  }
  free_.push_back(flow_idx);
  const std::vector<uint32_t> left = flow.lines;
  share(left, now_s);
}

void LineNetwork::set_capacity(uint32_t line_idx, double bytes_s, double now_s) {
  lines_[line_idx].capacity = bytes_s;
  share({line_idx}, now_s);
}

double LineNetwork::end_s(uint32_t flow_idx) const {
  const Flow& flow = flows_[flow_idx];
  if (flow.left_bytes <= 0) return flow.since_s;
  return flow.pace > 0 ? flow.since_s + flow.left_bytes / flow.pace
                       : std::numeric_limits<double>::infinity();
}

double LineNetwork::busy_s(uint32_t line_idx, double now_s) const {
  const Line& line = lines_[line_idx];
  return line.busy_s + (line.flows.empty() ? 0 : now_s - line.busy_since_s);
}

void LineNetwork::share(const std::vector<uint32_t>& from_lines, double now_s) {
  // All lines and flows that hang together with these.
  visit_ += 1;
  changed_.clear();
  std::vector<uint32_t> lines;
  const auto reach = [&](uint32_t line_idx) {
    Line& line = lines_[line_idx];
    if (line.seen == visit_) return;
    line.seen = visit_;
    line.left = line.capacity;
    line.num_open = static_cast<uint32_t>(line.flows.size());
    lines.push_back(line_idx);
  };
  for (const uint32_t line : from_lines) reach(line);
  for (size_t i = 0; i < lines.size(); ++i) {
    for (const uint32_t flow_idx : lines_[lines[i]].flows) {
      if (flow_seen_[flow_idx] == visit_) continue;
      flow_seen_[flow_idx] = visit_;
      changed_.push_back(flow_idx);
      for (const uint32_t line : flows_[flow_idx].lines) reach(line);
    }
  }
  // The narrowest line gives its flows what it has; what they take is gone on their other lines.
  std::vector<uint32_t> open = changed_;
  std::vector<double> paces(flows_.size(), 0.0);
  while (!open.empty()) {
    double least = std::numeric_limits<double>::infinity();
    uint32_t narrowest = 0;
    for (const uint32_t line_idx : lines) {
      const Line& line = lines_[line_idx];
      if (line.num_open == 0) continue;
      const double each = std::max(0.0, line.left) / line.num_open;
      if (each < least) {
        least = each;
        narrowest = line_idx;
      }
    }
    std::erase_if(open, [&](uint32_t flow_idx) {
      const std::vector<uint32_t>& crossed = flows_[flow_idx].lines;
      if (std::find(crossed.begin(), crossed.end(), narrowest) == crossed.end()) return false;
      paces[flow_idx] = least;
      for (const uint32_t line : crossed) {
        lines_[line].left -= least;
        lines_[line].num_open -= 1;
      }
      return true;
    });
  }
  for (const uint32_t flow_idx : changed_) {
    Flow& flow = flows_[flow_idx];
    settle(flow, now_s);
    flow.pace = paces[flow_idx];
    flow.version += 1;
  }
}

}  // namespace pelago::plan
