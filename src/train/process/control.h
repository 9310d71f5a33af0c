// A worker's end of the line to its supervisor. A thread reads it all the time: a supervisor that
// is gone is seen at once, whatever the worker is doing, and ends the process, since nobody would
// ever ask for its results.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "base/threads.h"
#include "train/process/packet_socket.h"

namespace pelago::train {

/// The first message of a supervisor: where this start of the site begins.
struct WorkerSetup {
  std::string rendezvous_dir;
  std::string resume_from;  // a checkpoint's folder; empty: fresh weights
  bool start_from_shared = false;
  int64_t start_step = 0;
  int64_t first_exchange = 0;  // earlier ones are merged
  int64_t data_shift = 0;      // data step less step
  int plan_idx = 0;            // which of the run's plans (run_folder.h)
  int slot_idx = -1;           // snapshot to go on from, before all else; -1: none
  bool examine = false;        // do not train: open the device, ask it what it must know, and end
  bool check_data = true;      // rank 0 hashes the corpus
  // What the run has of steps that are to be repeated.
  int64_t sent_exchange = -1;
  int64_t saved_step = -1;
  int64_t evaluated_step = -1;
  int64_t told_step = 0;            // completed steps that were told of: they are done as before,
  std::set<int64_t> left_out = {};  // which means that of those, these are left out again
  /// Whether this step, 1 is the first, is left out where the others have completed others_step.
  bool leaves_out(int64_t step, int64_t others_step) const {
    return step <= told_step ? left_out.contains(step) : step <= others_step;
  }
};
std::string to_json(const WorkerSetup& setup);

struct StopRequest {
  int64_t step = 0;  // completed steps
  bool with_checkpoint = false;
};

class Control {
 public:
  explicit Control(PacketSocket socket);
  ~Control();
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  void send(const std::string& message) { socket_.send(message); }
  /// One line for the person at the run; also in this process's log.
  void warn(const std::string& message);
  /// The first message, but for a request to open the device, which is carried out meanwhile.
  /// Throws Failure if it is another one.
  WorkerSetup wait_for_setup(const std::function<void()>& open_device);
  /// Handles what has come, after waiting at most timeout_s for the first message.
  void listen(double timeout_s);

  bool has_weights() const { return has_weights_; }
  bool may_train() const { return may_train_; }
  bool is_merged(int64_t exchange_idx) const { return merged_.contains(exchange_idx); }
  void forget_merged(int64_t exchange_idx) { merged_.erase(exchange_idx); }
  /// Steps that the other sites have completed, as far as was heard.
  int64_t others_step() const { return others_step_; }
  const std::optional<StopRequest>& stop_request() const { return stop_request_; }
  bool should_pause() const { return should_pause_; }
  /// The plan whose shares are to be taken before the step that reads this data step, once.
  std::optional<int> take_new_shares(int64_t data_step);

  /// Who answers the supervisor's questions whether this rank is well, on the reading thread.
  void set_answer(std::function<void(int64_t question)> answer);

 private:
  void handle(const std::string& packet);
  bool answer(const std::string& packet);

  PacketSocket socket_;
  BoundedQueue<std::string> packets_;
  bool may_train_ = false;
  bool has_weights_ = false;
  std::set<int64_t> merged_;  // exchanges whose merge has come and was not yet taken
  std::optional<StopRequest> stop_request_;
  bool should_pause_ = false;
  int64_t others_step_ = 0;
  std::map<int64_t, int> new_shares_;  // by the data step from which they hold: the plan's number
  std::mutex answer_mutex_;            // guards answer_
  std::function<void(int64_t)> answer_;
  std::jthread reader_;  // last: it uses the members above
};

}  // namespace pelago::train
