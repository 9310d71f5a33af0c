#include "sites/process/site_checkpoint.h"

#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/safetensors.h"
#include "train/checkpoint.h"

namespace pelago::sites {

namespace fs = std::filesystem;

namespace {

constexpr const char* kFile = "sites.safetensors";

Tensor as_tensor(std::span<const float> values) {
  return torch::from_blob(
      const_cast<float*>(values.data()), {static_cast<int64_t>(values.size())}, torch::kFloat32);
}

std::span<const float> values_of(const model::SafetensorsFile& file,
                                 const fs::path& path,
                                 const std::string& name,
                                 size_t num_values) {
  if (!file.has(name))
    fail("{}: has no tensor {}; it is not a site's checkpoint", path.string(), name);
  const Tensor tensor = file.tensor(name);
  if (tensor.scalar_type() != torch::kFloat32 ||
      (num_values > 0 && tensor.numel() != static_cast<int64_t>(num_values))) {
    fail("{}: tensor {} has {} values of another model, expected {} in f32",
         path.string(),
         name,
         tensor.numel(),
         num_values);
  }
  return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

std::vector<int64_t> numbers_of(const model::SafetensorsFile& file,
                                const fs::path& path,
                                const std::string& key,
                                size_t num_numbers) {
  const auto found = file.metadata().find(key);
  try {
    if (found == file.metadata().end()) fail("{}: has no metadata {}", path.string(), key);
    auto numbers = parse_json(found->second).get<std::vector<int64_t>>();
    if (numbers.size() == num_numbers) return numbers;
  } catch (const nlohmann::json::exception&) {
    // Said below.
  }
  fail("{}: metadata {} does not list {} fragments; it is of another plan",
       path.string(),
       key,
       num_numbers);
}

/// One of an earlier version tells steps instead, all of one start of the site.
std::vector<int64_t> sent_data_of(const model::SafetensorsFile& file,
                                  const fs::path& dir,
                                  size_t num_fragments) {
  const fs::path path = dir / kFile;
  if (file.metadata().contains("sent_data")) {
    return numbers_of(file, path, "sent_data", num_fragments);
  }
  const fs::path state = dir / "state.json";
  const train::TrainState counters =
      train::train_state_from_json(read_text_file(state), state.string());
  std::vector<int64_t> sent = numbers_of(file, path, "sent_steps", num_fragments);
  for (int64_t& step : sent) step += counters.data_step - counters.step;
  return sent;
}

}  // namespace

Status try_write_site_checkpoint(const fs::path& dir, const GlobalState& state) {
  return model::try_write_safetensors(dir / kFile,
                                      {{"global", as_tensor(state.global())},
                                       {"outer_momentum", as_tensor(state.momentum())},
                                       {"kept_error", as_tensor(state.kept_error())}},
                                      {{"applied", nlohmann::json(state.applied()).dump()},
                                       {"sent_data", nlohmann::json(state.sent_data()).dump()},
                                       {"hash", state.hash()}});
}

void read_site_checkpoint(const fs::path& dir, GlobalState& state) {
  const fs::path path = dir / kFile;
  const model::SafetensorsFile file(path);
  const size_t num_values = state.global().size();
  const size_t num_fragments = state.fragments().size();
  state.restore(values_of(file, path, "global", num_values),
                values_of(file, path, "outer_momentum", num_values),
                values_of(file, path, "kept_error", num_values),
                numbers_of(file, path, "applied", num_fragments),
                sent_data_of(file, dir, num_fragments));
}

std::vector<float> read_global_weights(const fs::path& dir) {
  const fs::path path = dir / kFile;
  const model::SafetensorsFile file(path);
  const std::span<const float> values = values_of(file, path, "global", 0);
  return {values.begin(), values.end()};
}

Result<CheckpointOffer> offer_of(const fs::path& checkpoint) {
  try {
    const fs::path state = checkpoint / "state.json";
    const train::TrainState counters =
        train::train_state_from_json(read_text_file(state), state.string());
    CheckpointOffer offer{.step = counters.step, .hash = {}, .data_step = counters.data_step};
    if (fs::exists(checkpoint / kFile)) {
      const model::SafetensorsFile file(checkpoint / kFile);
      const auto hash = file.metadata().find("hash");
      if (hash == file.metadata().end()) fail("{} has no hash", (checkpoint / kFile).string());
      offer.hash = hash->second;
    }
    return offer;
  } catch (const Failure& failure) {
    return Error{ErrorCode::kCorrupt, failure.what()};
  }
}

std::vector<CheckpointOffer> offer_joint_checkpoints(const fs::path& checkpoints_dir,
                                                     std::vector<std::string>& problems) {
  std::vector<CheckpointOffer> offers;
  for (const int64_t step : train::good_checkpoints(checkpoints_dir, &problems)) {
    const fs::path checkpoint = train::checkpoint_path(checkpoints_dir, step);
    offers.push_back({.step = step,
                      .hash = hash_hex(read_text_file(checkpoint / "manifest.json")),
                      .data_step = step});
  }
  return offers;
}

std::vector<CheckpointOffer> offer_checkpoints(const fs::path& checkpoints_dir,
                                               std::vector<std::string>& problems) {
  std::vector<CheckpointOffer> offers;
  for (const int64_t step : train::good_checkpoints(checkpoints_dir, &problems)) {
    Result<CheckpointOffer> offer = offer_of(train::checkpoint_path(checkpoints_dir, step));
    if (offer && !offer->hash.empty()) {
      offers.push_back(*offer);
    } else if (!offer) {
      const std::string& reason = offer.error().message;
      log_warn("checkpoint left out step={} reason=\"{}\"", step, reason);
      problems.push_back(fmt::format("checkpoint of step {} left out: {}", step, reason));
    }
  }
  return offers;
}

}  // namespace pelago::sites
