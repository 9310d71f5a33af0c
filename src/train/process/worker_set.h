// The worker processes of one start of a site: one a device, each at the end of a socket. A worker
// that ends without having said so is lost; its socket hangs up within milliseconds of its death.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/process/child.h"
#include "plan/plan.h"
#include "train/process/packet_socket.h"

namespace pelago::train {

/// Where a worker finds what its supervisor opened for it.
inline constexpr int kControlDescriptor = 3;
inline constexpr int kWeightsDescriptor = 4;
inline constexpr int kBridgeDescriptor = 5;

struct WorkerStart {
  std::filesystem::path run_dir, site_dir;
  int site_idx = 0;
  std::string setup;  // the first message to each
  int weights_descriptor = -1;
  std::vector<int> bridge_descriptors = {};  // by rank, to ranks of other sites; empty: none
};

/// One worker as its supervisor knows it.
struct Worker {
  ChildProcess process;
  PacketSocket socket;
  std::filesystem::path log;
  std::string device;
  bool is_ready = false;     // device open, weights loaded
  bool is_finished = false;  // its run is over
  bool has_left = false;     // it ended because it was asked to
  bool is_lost = false;
  std::string last_words, cause;  // of a failure
  bool is_over() const { return is_lost || is_finished || has_left; }
};

/// A worker process, its socket here, that waits for its setup. Throws Failure if it cannot be
/// started.
Worker spawn_worker(const WorkerStart& start,
                    const plan::DevicePlan& device,
                    size_t rank,
                    const std::string& log_name);
/// The same, its setup sent.
Worker start_worker(const WorkerStart& start,
                    const plan::DevicePlan& device,
                    size_t rank,
                    const std::string& log_name);

/// That a worker on this device computes with.
inline size_t num_threads_of(const plan::DevicePlan& device) {
  return std::max<size_t>(1, device.cores.size());
}

class SpareWorkers;

class WorkerSet {
 public:
  using OnPacket = std::function<void(size_t rank, const std::string& packet)>;

  /// One for each device of the site, spares where there are any. They die with the thread that
  /// calls this.
  void start(const WorkerStart& start, const plan::SitePlan& site, SpareWorkers& spares);
  /// Hands on what came within timeout_s. Returns whether something came.
  bool wait(double timeout_s, const OnPacket& on_packet);
  void tell_first(const std::string& packet);
  void tell_all(const std::string& packet);
  /// Closing its socket ends a worker at once; one that is stopped or stuck in a driver is killed.
  void end(double grace_s);

  size_t size() const { return workers_.size(); }
  Worker& operator[](size_t rank) { return workers_[rank]; }
  const std::vector<Worker>& all() const { return workers_; }
  bool all_are(bool Worker::*state) const;
  bool any_is(bool Worker::*state) const;

 private:
  std::vector<Worker> workers_;
};

/// "rank 1 (emulated:h20) was killed by signal 9 (Killed): its last words". Waits a moment for its
/// end.
std::string describe_end(Worker& worker, size_t rank);

}  // namespace pelago::train
