#include "train/saving/checkpoint_writer.h"

#include <system_error>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/safetensors.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

Tensor view_of(std::span<float> values) {
  return torch::from_blob(values.data(), {static_cast<int64_t>(values.size())}, torch::kFloat32);
}

Status write_files(const fs::path& dir, const HostState& state, const TrainState& counters) {
  Status written = model::try_write_safetensors(dir / "weights.safetensors",
                                                {{"master", view_of(state.master)}});
  if (written) {
    written = model::try_write_safetensors(dir / "optimizer.safetensors",
                                           {{"m", view_of(state.m)}, {"v", view_of(state.v)}});
  }
  return written ? try_write_file(dir / "state.json", to_json(counters) + "\n") : written;
}

}  // namespace

void CheckpointWriter::begin(Begun begun) {
  PELAGO_ASSERT(!is_busy(), "a slot is written before another is begun");
  control_->send(json({{"type", "checkpoint_begun"}, {"step", begun.counters.step}}).dump());
  begun_ = std::move(begun);
  poll();
}

bool CheckpointWriter::poll() {
  if (!begun_ || !begun_->is_whole()) return false;
  writing_.start([this, begun = *begun_] {
    BackgroundTask::give_way_to_others();
    write(begun);
    return ok();
  });
  begun_.reset();
  return true;
}

void CheckpointWriter::wait() {
  poll();
  PELAGO_ASSERT(!begun_, "all ranks have met since they began to copy");
  writing_.wait();
}

void CheckpointWriter::write(const Begun& begun) {
  const TrainState& counters = begun.counters;
  const double begin_s = steady_now_s();
  fs::path dir;
  std::string wrong;
  try {
    begun.complete();
    dir = begin_checkpoint(checkpoints_dir_, counters.step);
    const Status written = write_files(dir, begun.state, counters);
    if (!written) wrong = written.error().message;
  } catch (const Failure& failure) {
    wrong = failure.what();
  }
  if (!wrong.empty()) {
    std::error_code ignored;
    if (!dir.empty()) fs::remove_all(dir, ignored);
    control_->warn(
        fmt::format("checkpoint of step {} not saved, training goes on: {}", counters.step, wrong));
    return;
  }
  log_info("checkpoint written step={} write_s={:.4f}", counters.step, steady_now_s() - begin_s);
  control_->send(
      json({{"type", "checkpoint"}, {"step", counters.step}, {"dir", dir.string()}}).dump());
}

}  // namespace pelago::train
