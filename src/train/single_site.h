// A site that trains alone: no coordinator, no lines, checkpoints finished as soon as they are
// written. What a site of many needs as well (where to resume, how to export) is here too.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "plan/job.h"
#include "plan/plan.h"
#include "train/checkpoint.h"
#include "train/messages.h"
#include "train/run_folder.h"

namespace pelago::train {

/// All are optional and are called on the thread that called run_single_site(). Steps, evaluations
/// and events are already recorded in the run folder when these run.
struct SingleSiteCallbacks {
  std::function<void(const StepReport&)> on_step;
  std::function<void(const EvaluationReport&)> on_evaluation;
  std::function<void(const std::string& name, const std::string& fields_json)> on_event;
};

struct SingleSiteSummary {
  bool stopped = false;  // left before the last step: "stopped; resume with --resume"
  int64_t completed_steps = 0;
  double wall_s = 0;
  std::filesystem::path model_dir;  // the exported model; empty if stopped
};

/// Runs plan.sites[0], writes plan.json into the run folder first. resume: goes on from the newest
/// good checkpoint. stop_requests (a signal handler may raise it): 1 stops at the next quiet step
/// with a checkpoint; 2 or more throw at once. Throws Failure if a worker is lost, if no checkpoint
/// is good, or if the one there is was made with another model, corpus or tokenizer.
SingleSiteSummary run_single_site(const RunFolder& run_folder,
                                  const plan::Plan& plan,
                                  const plan::JobConfig& job,
                                  const std::atomic<int>& stop_requests,
                                  bool resume,
                                  const SingleSiteCallbacks& callbacks);

/// The newest good checkpoint of a site's folder. Throws Failure if there is none, or if it is of
/// another model, dataset or tokenizer (named).
std::filesystem::path newest_checkpoint(const std::filesystem::path& site_dir,
                                        const TrainState& expected);

/// Writes run_dir/model: Hugging Face layout, bf16, with the dataset's tokenizer. flat: [N] f32.
/// Returns the folder.
std::filesystem::path export_model(const std::filesystem::path& run_dir,
                                   const plan::JobConfig& job,
                                   std::span<const float> flat);

}  // namespace pelago::train
