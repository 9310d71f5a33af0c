// Copies of a site's checkpoints in an S3 store, for the day on which the site's own disk is gone.
//   RUN/SITE/step-N/FILE   the checkpoint's files, manifest.json last
//   RUN/SITE/latest        JSON: the course, and the checkpoints that are whole here, newest last
//   RUN/plan.json          the plan that the run began with
// A background thread copies the newest checkpoint that was offered; it never keeps training
// waiting, and what fails is told once and tried again with the next checkpoint. "latest" moves
// only from a state that was read to a newer one (If-Match), so that of two writers the slower one
// cannot move it back. A run that went back to an earlier step, or began anew, is a course of its
// own with a higher number: its step 10 comes after step 80 of the one before.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "sites/copies/s3_client.h"
#include "sites/protocol/messages.h"

namespace pelago::sites {

struct CopierOptions {
  S3Options store;
  std::string run, site;
  std::filesystem::path checkpoints_dir;
  std::filesystem::path plan_path;  // plan.json of the run; empty: it is not copied
  int64_t keep = 3;                 // newest copies that stay
  /// Completed steps at which this start began: a smaller number than the newest copy's makes it a
  /// new course.
  int64_t start_step = 0;
};

/// What "latest" says.
struct CopyIndex {
  int64_t course = 0;
  std::vector<CheckpointOffer> checkpoints;  // rising steps
  std::string etag;                          // of the object that said so; empty: there is none
};
std::string to_json(const CopyIndex& index);
/// kCorrupt if it is no index.
Result<CopyIndex> index_from_json(const std::string& text);

/// RUN and SITE as parts of keys: what a store would encode becomes "_".
std::string key_part(const std::string& name);

class CheckpointCopier {
 public:
  explicit CheckpointCopier(CopierOptions options);
  /// Gives up what is not done.
  ~CheckpointCopier();

  /// A checkpoint is whole on the disk. If an older one waits, this takes its place.
  void offer(int64_t step);
  /// name and JSON fields: "checkpoint_copied" (step, bytes, seconds, retries), or
  /// "checkpoint_copy_failed" (step, reason, failures: since the last that succeeded), of which the
  /// first comes with a "warning" (message).
  std::vector<std::pair<std::string, std::string>> take_events();
  /// Waits until nothing is left to copy, at most timeout_s. False if time was short.
  bool finish(double timeout_s);

 private:
  void work(const std::stop_token& stop);
  void note(int64_t step, const Result<int64_t>& copied, double seconds, int64_t num_retries);
  Status learn_course(S3Client& store);
  Status copy_plan(S3Client& store);
  Result<int64_t> copy(S3Client& store, int64_t step);  // returns bytes
  Status move_latest(S3Client& store, const CheckpointOffer& offer);
  bool add_to(CopyIndex& index, const CheckpointOffer& offer) const;
  void remove_superseded(S3Client& store, const CopyIndex& before, const CopyIndex& after);

  CopierOptions options_;
  std::optional<int64_t> course_;  // the worker's: once it has seen "latest"
  bool plan_is_there_ = false;     // the worker's
  std::mutex mutex_;               // guards the five below
  std::condition_variable_any changed_;
  std::optional<int64_t> wanted_;
  bool is_working_ = false;
  int64_t num_failures_ = 0;
  std::vector<std::pair<std::string, std::string>> events_;
  std::jthread worker_;  // last: it uses the members above
};

/// What can be fetched of a site. Nothing if there is no copy.
Result<std::optional<CopyIndex>> find_copies(const CopierOptions& options);
/// Downloads and verifies a checkpoint into checkpoints_dir/step-N. on_progress: called now and
/// then.
Status fetch_copy(
    const CopierOptions& options, int64_t step, const std::function<void()>& on_progress = [] {});
/// The plan of a run, from its copies. Nothing if there is none.
Result<std::optional<std::string>> fetch_plan(const CopierOptions& options);

}  // namespace pelago::sites
