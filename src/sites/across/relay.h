// The agent's part in a pipeline over several sites: what its workers have for ranks of other sites
// goes out over the line, what comes is handed to the worker it is for. Frames have no order of
// importance among themselves: workers give them in theirs, and nothing else of size is on the
// line.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "plan/plan.h"
#include "sites/across/relay_order.h"
#include "sites/transport/transport.h"
#include "train/across/bridge_socket.h"

namespace pelago::sites {

class Relay {
 public:
  /// plan outlives the relay.
  Relay(const plan::Plan& plan, size_t site_idx);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  /// Once. workers: in rank order. transport outlives the relay, or until stop().
  void start(int64_t start_number, std::vector<train::BridgeSocket> workers, Transport& transport);
  /// Any thread: a frame of that kind from the site it says. False: it makes no sense.
  bool take(Frame frame);
  /// Any thread: why nothing more comes to the workers; empty while all is well.
  std::string failure();
  /// Hangs up on the workers.
  void stop();

 private:
  void carry(const std::stop_token& stop);
  void carry_all(const std::stop_token& stop);
  void send_on(const train::BridgeHeader& header, std::string part, const std::stop_token& stop);
  void deliver(const std::vector<RelayPart>& parts);
  void write_to(int rank, const train::BridgeHeader& header, const std::string& part);
  void fail_workers(const std::string& why);
  bool is_good(const std::string& from, const RelayHead& head, size_t part_bytes) const;

  const plan::Plan* plan_;
  const size_t site_idx_;
  const int first_rank_;
  Transport* transport_ = nullptr;
  std::vector<train::BridgeSocket> workers_;  // set once, by start()
  int64_t start_number_ = -1;                 // the same
  std::map<size_t, uint64_t> next_sent_;      // by site; the carrying thread's
  std::mutex coming_mutex_;                   // guards the rest, and writing to workers
  RelayOrder order_;
  bool has_failed_ = false;
  std::jthread thread_;  // last: it uses the members above
};

}  // namespace pelago::sites
