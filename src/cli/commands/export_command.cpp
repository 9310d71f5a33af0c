// pelago export: the newest good checkpoint of a run as a Hugging Face folder.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "cli/commands/commands.h"
#include "cli/interrupts.h"
#include "model/safetensors.h"
#include "model/transformer.h"
#include "train/run_folder.h"
#include "train/single_site.h"

namespace pelago::cli {

namespace {

struct ExportArguments {
  std::string run, out, dtype = "bf16";
};

// What all sites agree on if there are many, else the one site's weights.
Tensor newest_weights(const std::filesystem::path& run,
                      const plan::JobConfig& job,
                      std::string& source) {
  const plan::Plan plan = train::read_run_plan(run);
  // Where sites are on hosts of their own, a run folder has the checkpoints of one of them.
  const auto folder = train::RunFolder::at(run);
  const auto here = std::find_if(plan.sites.begin(), plan.sites.end(), [&](const auto& site) {
    return train::has_checkpoint(folder.site_dir(site.name) / "checkpoints");
  });
  const auto site_dir =
      folder.site_dir(here == plan.sites.end() ? plan.sites.front().name : here->name);
  const auto checkpoint = train::newest_checkpoint(site_dir, train::identity_of(job));
  source = checkpoint.string();
  if (std::filesystem::exists(checkpoint / "sites.safetensors")) {
    return model::SafetensorsFile(checkpoint / "sites.safetensors").tensor("global").clone();
  }
  return model::SafetensorsFile(checkpoint / "weights.safetensors").tensor("master").clone();
}

void run_export(const ExportArguments& arguments, const Globals& globals) {
  if (arguments.dtype != "bf16" && arguments.dtype != "f32") {
    fail_usage("--dtype {}: must be bf16 or f32", arguments.dtype);
  }
  if (std::filesystem::exists(arguments.out) && !std::filesystem::is_empty(arguments.out)) {
    fail_usage("--out {}: the folder is not empty; name a new one", arguments.out);
  }
  const plan::JobConfig job = train::read_run_job(arguments.run);
  // Writing a large model takes minutes: Ctrl-C ends it where it is. The folder changes its name
  // first, so that nothing can come into it any more. It is made and takes its name under the
  // lock: a signal finds it whole, half made or not yet there, and says so truly.
  std::mutex changing;
  std::optional<PendingFolder> pending;
  bool is_whole = false;
  Interrupts interrupts([&] {
    const std::lock_guard lock(changing);
    if (is_whole) return;
    if (pending) {
      const std::filesystem::path doomed = pending->path().string() + ".tmp";
      std::error_code ignored;
      std::filesystem::rename(pending->path(), doomed, ignored);
      std::filesystem::remove_all(doomed, ignored);
    }
    leave_interrupted("stopped before the model was whole; nothing was written");
  });
  {
    const std::lock_guard lock(changing);
    pending.emplace(arguments.out);
  }
  std::string source;
  const Tensor flat = newest_weights(arguments.run, job, source);  // [N]
  model::save_model_folder(pending->path(),
                           job.model,
                           flat,
                           arguments.dtype == "f32" ? torch::kFloat32 : torch::kBFloat16,
                           job.data.dir);
  {
    const std::lock_guard lock(changing);
    pending->commit();
    is_whole = true;
  }
  interrupts.ignore_from_now();
  if (globals.json) {
    std::printf(
        "{\"model\": \"%s\", \"checkpoint\": \"%s\"}\n", arguments.out.c_str(), source.c_str());
  } else {
    std::printf("%s written from %s\n", arguments.out.c_str(), source.c_str());
  }
}

}  // namespace

void add_export(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command = add_command(app,
                                  globals,
                                  "export",
                                  "write a run's newest checkpoint as a Hugging Face folder",
                                  "  pelago export runs/two-sites --out model\n"
                                  "  pelago export runs/two-sites --out model --dtype f32\n");
  command->add_option("run", arguments->run, "the run folder")->required();
  command->add_option("--out", arguments->out, "the folder to write")->required();
  command->add_option("--dtype", arguments->dtype, "bf16 or f32")->capture_default_str();
  command->callback([arguments, &globals] { run_export(*arguments, globals); });
}

}  // namespace pelago::cli
