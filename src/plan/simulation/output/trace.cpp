#include "plan/simulation/output/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace pelago::plan {

namespace {

std::string escape_json(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out;
}

/// The process of each track, from 1, in the order in which groups first appear.
std::vector<int> group_ids(const Trace& trace, std::vector<std::string>& groups) {
  std::vector<int> ids;
  for (const Trace::Track& track : trace.tracks()) {
    auto found = std::find(groups.begin(), groups.end(), track.group);
    if (found == groups.end()) found = groups.insert(groups.end(), track.group);
    ids.push_back(static_cast<int>(found - groups.begin()) + 1);
  }
  return ids;
}

}  // namespace

const char* name_of(SpanKind kind) {
  switch (kind) {
    case SpanKind::kForward:
      return "forward";
    case SpanKind::kBackward:
      return "backward";
    case SpanKind::kCompute:
      return "compute";
    case SpanKind::kUpdate:
      return "update";
    case SpanKind::kReduce:
      return "reduce";
    case SpanKind::kLine:
      return "line";
    case SpanKind::kWait:
      return "wait";
    case SpanKind::kDown:
      return "down";
  }
  return "";
}

uint32_t Trace::add_track(std::string group, std::string name) {
  tracks_.push_back({std::move(group), std::move(name)});
  return static_cast<uint32_t>(tracks_.size() - 1);
}

void Trace::add(
    uint32_t track, const std::string& name, SpanKind kind, double begin_s, double end_s) {
  if (spans_.size() >= spans_max_) {
    num_left_out_ += 1;
    return;
  }
  const auto [found, is_new] = name_idx_.try_emplace(name, static_cast<uint32_t>(names_.size()));
  if (is_new) names_.push_back(name);
  spans_.push_back({track, found->second, kind, begin_s, end_s});
}

std::string to_chrome_json(const Trace& trace) {
  std::string out = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  auto end = std::back_inserter(out);
  std::vector<std::string> groups;
  const std::vector<int> ids = group_ids(trace, groups);
  for (size_t i = 0; i < groups.size(); ++i) {
    fmt::format_to(
        end,
        "{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{},\"args\":{{\"name\":\"{}\"}}}},\n",
        i + 1,
        escape_json(groups[i]));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    fmt::format_to(end,
                   "{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{},\"tid\":{},\"args\":{{"
                   "\"name\":\"{}\"}}}},\n",
                   ids[i],
                   i + 1,
                   escape_json(trace.tracks()[i].name));
  }
  for (const Trace::Span& span : trace.spans()) {
    fmt::format_to(end,
                   "{{\"ph\":\"X\",\"name\":\"{}\",\"cat\":\"{}\",\"pid\":{},\"tid\":{},\"ts\":{:."
                   "3f},\"dur\":{:.3f}}},\n",
                   escape_json(trace.names()[span.name]),
                   name_of(span.kind),
                   ids[span.track],
                   span.track + 1,
                   1e6 * span.begin_s,
                   1e6 * (span.end_s - span.begin_s));
  }
  fmt::format_to(
      end,
      "{{\"ph\":\"M\",\"name\":\"spans_left_out\",\"pid\":0,\"args\":{{\"count\":{}}}}}\n]}}\n",
      trace.num_left_out());
  return out;
}

}  // namespace pelago::plan
