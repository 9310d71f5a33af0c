// Bytes on lines, in virtual time. A flow crosses one line or several and gets the fair share of
// the narrowest of them (max-min: Bertsekas and Gallager, Data Networks, 6.5.2), as congestion
// control does over minutes. When a flow begins or ends, only flows that share a line with it,
// directly or through others, change their pace.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace pelago::plan {

class LineNetwork {
 public:
  struct Flow {
    std::vector<uint32_t> lines;
    double left_bytes = 0;
    double pace = 0;  // bytes/s since since_s
    double since_s = 0;
    double begun_s = 0;
    uint32_t version = 0;  // of its pace: what was foretold for an older one is stale
    uint64_t tag = 0;      // whose it is
    bool is_live = false;
  };

  /// capacities: bytes/s of each line.
  explicit LineNetwork(std::vector<double> capacities);

  /// Begins a flow at now_s. Returns its index; ends(...) then holds all flows whose end changed.
  uint32_t begin(std::vector<uint32_t> lines, double bytes, uint64_t tag, double now_s);
  /// Takes a flow off its lines, done or not.
  void end(uint32_t flow_idx, double now_s);
  /// A line that carries less, or nothing, or all of it again.
  void set_capacity(uint32_t line_idx, double bytes_s, double now_s);

  const Flow& flow(uint32_t flow_idx) const { return flows_[flow_idx]; }
  /// When the flow will be through at its present pace; infinite while its line is down.
  double end_s(uint32_t flow_idx) const;
  /// Flows whose pace the last call changed. Their ends are to be foretold anew.
  const std::vector<uint32_t>& changed() const { return changed_; }

  double carried_bytes(uint32_t line_idx) const { return lines_[line_idx].carried_bytes; }
  /// Seconds in which the line carried anything.
  double busy_s(uint32_t line_idx, double now_s) const;

 private:
  struct Line {
    double capacity = 0;
    double carried_bytes = 0;
    double busy_s = 0, busy_since_s = 0;
    std::vector<uint32_t> flows;
    double left = 0;  // while shares are worked out
    uint32_t num_open = 0;
    uint64_t seen = 0;
  };
  /// Brings what has flowed up to date and shares anew, for all that hang together with `line`.
  void share(const std::vector<uint32_t>& from_lines, double now_s);
  void settle(Flow& flow, double now_s);

  std::vector<Line> lines_;
  std::vector<Flow> flows_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> changed_;
  std::vector<uint64_t> flow_seen_;
  uint64_t visit_ = 0;
};

}  // namespace pelago::plan
