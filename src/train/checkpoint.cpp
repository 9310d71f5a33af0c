// The order of writes is the whole point: every file of the temporary folder is on disk before the
// manifest is, the manifest before the folder gets its name, and the name before anything older is
// deleted. Whenever the machine stops, what is called step-N is whole.
#include "train/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <system_error>

#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kManifest = "manifest.json";
constexpr int kManifestFormat = 1;

fs::path temporary_path(const fs::path& checkpoints_dir, int64_t step) {
  return checkpoints_dir / fmt::format(".step-{}.tmp", step);
}

/// N of "step-N"; -1 for any other name.
int64_t step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return -1;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
  return parsed.ec == std::errc() && parsed.ptr == end && step >= 0 ? step : -1;
}

/// Steps of the folders called step-N, ascending.
std::vector<int64_t> checkpoint_steps(const fs::path& checkpoints_dir) {
  std::vector<int64_t> steps;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoints_dir, ignored)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step >= 0 && entry.is_directory(ignored)) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

json manifest_of(const fs::path& folder) {
  std::map<std::string, json> files;  // sorted, so that the same files give the same manifest
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == kManifest) continue;
    sync_to_disk(entry.path());
    const MappedFile file(entry.path());
    files[name] = {{"bytes", file.bytes().size()}, {"xxh3_128", hash_hex(file.bytes())}};
  }
  return {{"format", kManifestFormat}, {"files", files}};
}

/// Gives the temporary folder its name. If a folder has that name already (a run that went back
/// saves the step again) the two are exchanged in one move, so that one of them always has it.
void take_name(const fs::path& temporary, const fs::path& final_path) {
  const bool is_taken = fs::exists(final_path);
  const unsigned flags = is_taken ? RENAME_EXCHANGE : 0;
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, final_path.c_str(), flags) != 0) {
    const std::error_code reason(errno, std::generic_category());
    throw fs::filesystem_error("cannot rename", temporary, final_path, reason);
  }
  sync_to_disk(final_path.parent_path());
  if (is_taken) fs::remove_all(temporary);
}

void delete_superseded(const fs::path& checkpoints_dir, int64_t step, int64_t keep) {
  int64_t kept = 0;
  std::vector<int64_t> steps = checkpoint_steps(checkpoints_dir);
  std::reverse(steps.begin(), steps.end());
  for (const int64_t other : steps) {
    if (other <= step && kept++ < std::max<int64_t>(keep, 1)) continue;
    std::error_code reason;
    fs::remove_all(checkpoint_path(checkpoints_dir, other), reason);
    if (reason) log_warn("old checkpoint stays step={} reason=\"{}\"", other, reason.message());
  }
}

/// What was begun before and never finished, because a worker died at it.
void delete_half_made(const fs::path& checkpoints_dir, int64_t step) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoints_dir, ignored)) {
    const std::string stem = entry.path().stem().string();  // ".step-N" of ".step-N.tmp"
    const int64_t begun = stem.starts_with(".") ? step_of(stem.substr(1)) : -1;
    if (begun < 0 || begun >= step || entry.path() != temporary_path(checkpoints_dir, begun)) {
      continue;
    }
    std::error_code reason;
    fs::remove_all(entry.path(), reason);
  }
}

Error give_up(const fs::path& temporary, ErrorCode code, const std::string& why) {
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  return Error{code, why};
}

std::string verify_file(const fs::path& path, const json& expected) {
  if (!fs::is_regular_file(path)) return fmt::format("{} is missing", path.string());
  const MappedFile file(path);
  const auto num_bytes = expected.at("bytes").get<size_t>();
  if (file.bytes().size() != num_bytes) {
    return fmt::format(
        "{} has {} bytes, the manifest says {}", path.string(), file.bytes().size(), num_bytes);
  }
  if (hash_hex(file.bytes()) != expected.at("xxh3_128").get<std::string>()) {
    return fmt::format("{} is damaged: its hash differs from the manifest's", path.string());
  }
  return "";
}

}  // namespace

std::string to_json(const TrainState& state) {
  return json({{"step", state.step},
               {"data_step", state.data_step},
               {"tokens", state.tokens},
               {"seed", state.seed},
               {"adam_steps", state.adam_steps},
               {"loss_scale", state.loss_scale},
               {"loss_scale_steps", state.loss_scale_steps},
               {"optimizer", state.optimizer},
               {"model_hash", state.model_hash},
               {"dataset_hash", state.dataset_hash},
               {"tokenizer_hash", state.tokenizer_hash}})
      .dump(2);
}

TrainState train_state_from_json(const std::string& text, const std::string& name) {
  TrainState state;
  try {
    const json value = parse_json(text);
    value.at("step").get_to(state.step);
    state.data_step = value.value("data_step", state.step);
    value.at("tokens").get_to(state.tokens);
    value.at("seed").get_to(state.seed);
    value.at("adam_steps").get_to(state.adam_steps);
    value.at("loss_scale").get_to(state.loss_scale);
    value.at("loss_scale_steps").get_to(state.loss_scale_steps);
    state.optimizer = value.value("optimizer", state.optimizer);
    value.at("model_hash").get_to(state.model_hash);
    value.at("dataset_hash").get_to(state.dataset_hash);
    value.at("tokenizer_hash").get_to(state.tokenizer_hash);
  } catch (const json::exception& error) {
    fail("{}: not the state of a checkpoint: {}", name, error.what());
  }
  if (state.step < 0 || state.data_step < 0 || state.adam_steps < 0)
    fail("{}: a step is negative", name);
  return state;
}

void refuse_other_run(const TrainState& found,
                      const TrainState& expected,
                      const std::string& name) {
  const auto refuse = [&](const char* what, const std::string& theirs, const std::string& ours) {
    if (theirs == ours) return;
    fail(
        "{}: made with another {} (hash {}, this run has {}): take the run's own {}, or start "
        "anew with --fresh",
        name,
        what,
        theirs,
        ours,
        what);
  };
  refuse("model", found.model_hash, expected.model_hash);
  refuse("tokenizer", found.tokenizer_hash, expected.tokenizer_hash);
  refuse("dataset", found.dataset_hash, expected.dataset_hash);
  if (found.optimizer == expected.optimizer) return;
  fail(
      "{}: made with train.optimizer = \"{}\", this run has \"{}\": take \"{}\", or start anew "
      "with "
      "--fresh",
      name,
      found.optimizer,
      expected.optimizer,
      found.optimizer);
}

fs::path checkpoint_path(const fs::path& checkpoints_dir, int64_t step) {
  return checkpoints_dir / fmt::format("step-{}", step);
}

fs::path begin_checkpoint(const fs::path& checkpoints_dir, int64_t step) {
  const fs::path temporary = temporary_path(checkpoints_dir, step);
  std::error_code reason;
  fs::remove_all(temporary, reason);
  if (!reason) fs::create_directories(temporary, reason);
  if (reason) fail("{}: cannot make the folder: {}", temporary.string(), reason.message());
  return temporary;
}

Status finish_checkpoint(const fs::path& checkpoints_dir, int64_t step, int64_t keep) {
  const fs::path temporary = temporary_path(checkpoints_dir, step);
  try {
    const Status written =
        try_write_file(temporary / kManifest, manifest_of(temporary).dump(2) + "\n");
    if (!written) return give_up(temporary, written.error().code, written.error().message);
    take_name(temporary, checkpoint_path(checkpoints_dir, step));
  } catch (const Failure& failure) {
    return give_up(temporary, ErrorCode::kUnavailable, failure.what());
  } catch (const fs::filesystem_error& error) {
    const bool is_full = error.code() == std::errc::no_space_on_device;
    return give_up(
        temporary, is_full ? ErrorCode::kNoSpace : ErrorCode::kUnavailable, error.what());
  }
  delete_superseded(checkpoints_dir, step, keep);
  delete_half_made(checkpoints_dir, step);
  return ok();
}

std::string verify_checkpoint(const fs::path& checkpoint) {
  const fs::path manifest_path = checkpoint / kManifest;
  if (!fs::is_regular_file(manifest_path)) {
    return fmt::format("{} is missing", manifest_path.string());
  }
  try {
    const json manifest = parse_json(read_text_file(manifest_path));
    if (manifest.at("format").get<int>() != kManifestFormat) {
      return fmt::format("{} has format {}, this program reads {}",
                         manifest_path.string(),
                         manifest.at("format").dump(),
                         kManifestFormat);
    }
    for (const auto& [name, expected] : manifest.at("files").items()) {
      std::string wrong = verify_file(checkpoint / fs::path(name).filename(), expected);
      if (!wrong.empty()) return wrong;
    }
    if (!manifest.at("files").contains("state.json")) {
      return fmt::format("{} lists no state.json", manifest_path.string());
    }
  } catch (const json::exception&) {
    return fmt::format("{} is damaged: not a manifest", manifest_path.string());
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

bool has_checkpoint(const fs::path& checkpoints_dir) {
  return !checkpoint_steps(checkpoints_dir).empty();
}

std::vector<int64_t> good_checkpoints(const fs::path& checkpoints_dir,
                                      std::vector<std::string>* problems) {
  std::vector<int64_t> good;
  for (const int64_t step : checkpoint_steps(checkpoints_dir)) {
    const std::string wrong = verify_checkpoint(checkpoint_path(checkpoints_dir, step));
    if (wrong.empty()) {
      good.push_back(step);
    } else {
      log_warn("checkpoint passed over step={} reason=\"{}\"", step, wrong);
      if (problems != nullptr) {
        problems->push_back(fmt::format("checkpoint of step {} passed over: {}", step, wrong));
      }
    }
  }
  return good;
}

}  // namespace pelago::train
