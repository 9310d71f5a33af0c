#include "train/recovery/return_watch.h"

#include <poll.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace pelago::train {

namespace {

constexpr double kFirstLookS = 2;
constexpr double kPauseMaxS = 300;
constexpr double kExaminationMaxS = 60;  // loading libtorch and a driver takes seconds

}  // namespace

void ReturnWatch::on_lost(size_t place, double now_s) {
  const int num_losses = ++num_losses_[place];
  const double pause_s = std::min(kFirstLookS * (1 << std::min(num_losses - 1, 10)), kPauseMaxS);
  missing_[place] = {.next_s = now_s + pause_s, .pause_s = pause_s, .is_well = false};
}

std::optional<size_t> ReturnWatch::look(const plan::SitePlan& own_site, double now_s) {
  if (examination_) {
    pollfd watched{.fd = examination_->worker.socket.descriptor(), .events = POLLIN, .revents = 0};
    if (::poll(&watched, 1, 0) > 0) {
      const std::optional<std::string> packet = examination_->worker.socket.receive();
      end_examination(packet && packet->find("\"well\"") != std::string::npos, now_s);
    } else if (now_s > examination_->deadline_s) {
      end_examination(false, now_s);
    }
  } else {
    for (auto& [place, missing] : missing_) {
      if (missing.is_well) return place;
      if (now_s < missing.next_s) continue;
      Worker worker = start_worker(
          start_, own_site.devices[place], place, fmt::format("examined-{}.log", place));
      examination_.emplace(Examination{place, std::move(worker), now_s + kExaminationMaxS});
      break;
    }
  }
  return std::nullopt;
}

void ReturnWatch::end_examination(bool passed, double now_s) {
  Missing& missing = missing_[examination_->place];
  log_debug("examined place={} passed={}", examination_->place, passed);
  missing.is_well = passed;
  missing.pause_s = std::min(2 * missing.pause_s, kPauseMaxS);
  missing.next_s = now_s + missing.pause_s;
  examination_.reset();
}

}  // namespace pelago::train
