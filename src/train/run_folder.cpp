#include "train/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/files.h"
#include "base/text/json.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "plan/across/joint.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

double unix_time_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(std::chrono::round<std::chrono::milliseconds>(now)).count();
}

/// Appends the line with one write, which the kernel does not mix with those of other processes.
/// A full disk must not end a training run, so failure to record is not an error.
void append_line(const fs::path& path, const std::string& line) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return;
  const std::string text = line + "\n";
  const ssize_t written = ::write(file, text.data(), text.size());
  if (written > 0 && static_cast<size_t>(written) < text.size()) {
    // Half a line would spoil the next one, once there is room again.
    [[maybe_unused]] const int undone =
        ::ftruncate(file, ::lseek(file, 0, SEEK_CUR) - static_cast<off_t>(written));
  }
  ::close(file);
}

json stamped(const char* key, const std::string& kind, const std::string& fields_json) {
  json line = {{"time", unix_time_s()}, {key, kind}};
  if (!fields_json.empty()) line.update(parse_json(fields_json));
  return line;
}

std::string devices_of(const plan::FleetSite& site) {
  std::string devices;
  for (const plan::FleetDevice& device : site.devices) {
    devices += (devices.empty() ? "" : ", ") + device.device;
  }
  return devices;
}

/// Sites in step have the whole of every checkpoint: any of them can go on without the others.
bool can_go_on(const plan::FleetConfig& fleet, const plan::Plan& plan) {
  if (!plan::is_joint(plan)) return false;
  return std::ranges::all_of(fleet.sites, [&](const plan::FleetSite& site) {
    return std::ranges::any_of(plan.sites, [&](const plan::SitePlan& known) {
      return known.name == site.name && std::ranges::equal(known.devices,
                                                           site.devices,
                                                           {},
                                                           &plan::DevicePlan::device,
                                                           &plan::FleetDevice::device);
    });
  });
}

void refuse_other_fleet(const fs::path& run, const plan::FleetConfig& fleet) {
  if (fs::exists(run / "plan.json") && can_go_on(fleet, read_run_plan(run))) return;
  const fs::path path = run / "fleet.toml";
  const plan::FleetConfig old = plan::read_fleet(path, chips::Catalogue::built_in());
  const auto refuse = [&](const std::string& theirs, const std::string& ours) {
    if (theirs == ours) return;
    fail_usage(
        "{}: the run was made for {}, this fleet has {}: give the fleet of the run, or start "
        "anew with --fresh",
        path.string(),
        theirs,
        ours);
  };
  refuse(fmt::format("{} sites", old.sites.size()), fmt::format("{} sites", fleet.sites.size()));
  for (size_t i = 0; i < fleet.sites.size(); ++i) {
    const auto describe = [](const plan::FleetSite& site) {
      return fmt::format("site {} with {}", site.name, devices_of(site));
    };
    refuse(describe(old.sites[i]), describe(fleet.sites[i]));
  }
}

void refuse_other_job(const fs::path& run, const plan::JobConfig& job) {
  const fs::path path = run / "job.toml";
  plan::JobConfig old = plan::read_job(path, {});
  old.model.vocab_size = job.model.vocab_size;  // both come from the dataset, compared below
  old.model.bos_token_id = job.model.bos_token_id;
  old.model.eos_token_id = job.model.eos_token_id;
  const auto refuse = [&](const char* what, const std::string& theirs, const std::string& ours) {
    if (theirs == ours) return;
    fail_usage(
        "{}: {} is {} in this run and {} in the job given: give the job of the run, or start "
        "anew with --fresh",
        path.string(),
        what,
        theirs,
        ours);
  };
  const json old_model = parse_json(model::to_config_json(old.model, "float32"));
  const json new_model = parse_json(model::to_config_json(job.model, "float32"));
  for (const auto& [key, value] : new_model.items()) {
    const std::string field = "model." + key;
    refuse(field.c_str(), old_model.value(key, json()).dump(), value.dump());
  }
  refuse("data.dir", old.data.dir, job.data.dir);
  refuse("data.sequence_length",
         std::to_string(old.data.sequence_length),
         std::to_string(job.data.sequence_length));
  refuse("train.optimizer", old.train.optimizer, job.train.optimizer);
}

}  // namespace

void take_vocabulary(plan::JobConfig& job) {
  if (!fs::exists(fs::path(job.data.dir) / "dataset.json")) {
    fail_usage(
        "data.dir = \"{}\": there is no dataset; make one with `pelago data build --from DIR --out "
        "{}`",
        job.data.dir,
        job.data.dir);
  }
  const auto tokenizer = data::Tokenizer::read(fs::path(job.data.dir) / "tokenizer.json");
  job.model.vocab_size = tokenizer.vocab_size();
  job.model.eos_token_id = tokenizer.end_of_text();
}

plan::JobConfig read_run_job(const fs::path& run_dir) {
  plan::JobConfig job = plan::read_job(run_dir / "job.toml", {});
  take_vocabulary(job);
  return job;
}

plan::Plan read_run_plan(const fs::path& run_dir) {
  const fs::path path = run_dir / "plan.json";
  return plan::plan_from_json(read_text_file(path), path.string());
}

TrainState identity_of(const plan::JobConfig& job) {
  const data::TokenStream stream(job.data.dir, "train", /*verify=*/false);
  TrainState state;
  state.seed = static_cast<uint64_t>(job.train.seed);
  state.optimizer = job.train.optimizer;
  state.model_hash = hash_hex(model::to_config_json(job.model, "float32"));
  state.dataset_hash = stream.dataset_hash();
  state.tokenizer_hash = stream.tokenizer_hash();
  return state;
}

RunFolder RunFolder::open(const plan::JobConfig& job,
                          const plan::FleetConfig& fleet,
                          RunStart start) {
  const RunFolder folder(fs::path(job.runs_dir) / job.name);
  const fs::path& path = folder.path_;
  const bool is_run = fs::is_regular_file(path / "job.toml");
  if (start == RunStart::kResume) {
    if (!is_run) {
      fail_usage("{}: no run to resume: leave out --resume, or name another run", path.string());
    }
    refuse_other_job(path, job);
    refuse_other_fleet(path, fleet);
  } else if (fs::exists(path)) {
    if (start == RunStart::kNew) {
      fail_usage(
          "{}: the run exists: go on with --resume, or start anew with --fresh, which deletes "
          "it",
          path.string());
    }
    if (!is_run && !fs::is_empty(path)) {
      fail_usage("{}: not a run folder, so --fresh does not delete it: choose another name",
                 path.string());
    }
    fs::remove_all(path);
  }
  std::error_code reason;
  fs::create_directories(path, reason);
  for (const plan::FleetSite& site : fleet.sites) {
    if (!reason) fs::create_directories(folder.site_dir(site.name) / "checkpoints", reason);
  }
  if (reason) fail("{}: cannot make the run folder: {}", path.string(), reason.message());
  write_file(path / "job.toml", job.source_toml);
  write_file(path / "fleet.toml", fleet.source_toml);
  return folder;
}

RunFolder RunFolder::at(const fs::path& path) {
  if (!fs::is_regular_file(path / "job.toml")) {
    fail_usage("{}: not a run folder (it has no job.toml)", path.string());
  }
  return RunFolder(path);
}

void RunFolder::write_plan(const plan::Plan& plan) const {
  write_file(path_ / "plan.json", plan::to_json(plan));
}

void RunFolder::record_event(const std::string& event, const std::string& fields_json) const {
  append_line(path_ / "events.jsonl", stamped("event", event, fields_json).dump());
}

void RunFolder::record_step(const StepReport& report) const {
  append_line(path_ / "metrics.jsonl", stamped("kind", "step", to_json(report)).dump());
}

void RunFolder::record_evaluation(const EvaluationReport& report) const {
  append_line(path_ / "metrics.jsonl", stamped("kind", "evaluation", to_json(report)).dump());
}

void RunFolder::record_line(const std::string& site, int64_t sent_bytes) const {
  const nlohmann::json fields = {{"site", site}, {"sent_bytes", sent_bytes}};
  append_line(path_ / "metrics.jsonl", stamped("kind", "line", fields.dump()).dump());
}

}  // namespace pelago::train
