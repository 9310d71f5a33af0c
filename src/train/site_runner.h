// Runs one site: starts a worker process for each device, passes messages, and goes on without a
// device that is lost (recovery/supervisor.h). It knows nothing of other sites: whoever stands
// above (the site agent, or the command line for a site alone) implements SiteEvents.
// Single-threaded: everything happens inside poll().
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/across/bridge_socket.h"
#include "train/messages.h"

namespace pelago::train {

/// What a site tells those above it. Called from SiteRunner::poll().
class SiteEvents {
 public:
  virtual ~SiteEvents() = default;
  virtual void on_ready() {}  // every worker has opened its device and loaded weights
  virtual void on_step(const StepReport&) {}
  virtual void on_evaluation(const EvaluationReport&) {}
  /// Fragment weights of this exchange lie in SiteRunner::local_weights() until merged() is called
  /// for it.
  virtual void on_snapshot(int64_t /*exchange_idx*/, Fragment) {}
  /// The workers have copied their state after `step` steps, a quiet step, and go on. Copy what
  /// belongs to the checkpoint, too: it changes from here on.
  virtual void on_checkpoint_begun(int64_t /*step*/) {}
  /// On another thread: the workers' files are in dir (a temporary folder beside the checkpoints);
  /// add what belongs to them. An Error: there is no checkpoint of this step, training goes on.
  virtual Status add_to_checkpoint(int64_t /*step*/, const std::filesystem::path& /*dir*/) {
    return ok();
  }
  virtual void on_checkpoint_saved(int64_t /*step*/) {}
  /// The step that completes so many is not trained here: its samples are those of the next one
  /// that is. Told before whatever follows from that step.
  virtual void on_left_out(int64_t /*step*/) {}
  virtual void on_warning(const std::string& /*message*/) {}
  /// A device was lost, or is back, or got another share, or the site goes on after that:
  /// "device_lost", "recovered" (steps_repeated, seconds_lost), "device_returned", "rejoined",
  /// "new_shares", "new_stages". fields_json: a JSON object.
  virtual void on_recovery(const std::string& /*event*/, const std::string& /*fields_json*/) {}
};

/// From this data step on, the sites take so many sequences of each batch.
struct BatchShares {
  int64_t from_data_step = 0;
  std::vector<int64_t> sequences;  // by site
};

struct SitePlace {
  std::filesystem::path
      run_dir;  // holds job.toml and plan.json; checkpoints go to site_dir/checkpoints
  std::filesystem::path site_dir;  // run_dir/sites/NAME
  int site_idx = 0;
};

/// Where a site begins.
struct SiteStart {
  /// Checkpoint to go on from; absent: fresh weights, or local_weights() if start_from_shared is
  /// set.
  std::optional<std::filesystem::path> resume_from;
  bool start_from_shared = false;  // a joining site: its ranks take their weights from
                                   // local_weights() once weights_are_here(), Adam starts anew
  int64_t start_step = 0;      // with start_from_shared: completed steps to count from
  int64_t first_exchange = 0;  // merges of earlier ones are in the weights already
  /// Added to a step to find its samples: a site that lost starts reads on where it had got to.
  /// Each step that is left out takes one off.
  int64_t data_shift = 0;
};

class SiteRunner {
 public:
  /// Reads run_dir/job.toml and plan.json. Throws Failure.
  explicit SiteRunner(const SitePlace& place);
  /// Ends every worker (SIGKILL after a grace of 5 s) and removes shared memory.
  ~SiteRunner();

  /// Has workers load their libraries, open their devices and examine them while it is not yet
  /// known where the site begins. They die with the thread that calls this.
  void prepare();
  /// Starts the workers. They wait at their start step until allow_training() is called. They die
  /// with the thread that calls this. events outlives the runner. Throws Failure if workers cannot
  /// be started.
  void start(const SiteStart& start, SiteEvents& events);
  void allow_training();
  /// Handles what came within timeout_s. Returns false once every worker has finished its run. A
  /// device that is lost while the site trains is done without; steps that are repeated then are
  /// not reported again. Throws Failure naming the rank and how it ended, with its own last words,
  /// if the others cannot go on without it or the site had not yet begun.
  bool poll(double timeout_s);

  /// Host f32 [N] in shared memory: workers write snapshots here. Once poll() has returned false it
  /// holds the site's weights as they were at its last step.
  std::span<float> local_weights();
  /// Host f32 [N] in shared memory: the agent writes merged weights here (of an overlapped
  /// exchange, their difference to the snapshot), then calls merged().
  std::span<float> merged_weights();
  void merged(int64_t exchange_idx);

  /// With start_from_shared: local_weights() hold what to begin with.
  void weights_are_here();
  /// After the plan's, in the order of their steps, also before start(): of a step that no worker
  /// has begun, later than all shares before. The stages stay. Throws Failure if the site cannot
  /// work with so few sequences.
  void take_shares(const BatchShares& shares);
  /// The other sites have completed so many steps: this one leaves out what it has not told of yet
  /// until it is there.
  void others_at(int64_t step);

  /// Every rank stops after this many completed steps (which must be quiet and not yet reached),
  /// with a checkpoint if asked.
  void stop_at(int64_t completed_steps, bool with_checkpoint);
  /// The first quiet step that all ranks can still stop at.
  int64_t next_quiet_step() const;
  int64_t completed_steps() const;
  /// Of a joint plan, after start(): the agent's ends of the bridges, in rank order, once.
  std::vector<BridgeSocket> take_bridges();
  const plan::Plan& plan() const;
  const plan::JobConfig& job() const;
  const std::vector<Fragment>& fragments() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The fragments of a model: P ranges of about the same size, cut at tensor borders where that
/// keeps sizes within 10 %, else inside a tensor.
std::vector<Fragment> cut_fragments(const model::ModelConfig& model, int64_t num_fragments);

/// The hidden command of a worker process: `pelago worker --run-dir D --site-dir S --site-idx I
/// --rank R`, control socket on descriptor 3, shared weights on descriptor 4.
struct WorkerOptions {
  std::filesystem::path run_dir, site_dir;
  int site_idx = 0;
  int rank = 0;
};
/// Returns the exit code of the process.
int run_worker(const WorkerOptions& options);

}  // namespace pelago::train
