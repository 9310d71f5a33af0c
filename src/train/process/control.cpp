#include "train/process/control.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "base/error.h"
#include "base/log.h"
#include "base/text/json.h"

namespace pelago::train {

using nlohmann::json;

namespace {
constexpr size_t kWaitingPacketsMax = 256;
}

void Control::warn(const std::string& message) {
  log_warn("{}", message);
  send(json({{"type", "warning"}, {"message", message}}).dump());
}

std::string to_json(const WorkerSetup& setup) {
  return json({{"type", "setup"},
               {"rendezvous_dir", setup.rendezvous_dir},
               {"resume_from", setup.resume_from},
               {"start_from_shared", setup.start_from_shared},
               {"start_step", setup.start_step},
               {"first_exchange", setup.first_exchange},
               {"data_shift", setup.data_shift},
               {"plan_idx", setup.plan_idx},
               {"slot_idx", setup.slot_idx},
               {"examine", setup.examine},
               {"check_data", setup.check_data},
               {"sent_exchange", setup.sent_exchange},
               {"saved_step", setup.saved_step},
               {"evaluated_step", setup.evaluated_step},
               {"told_step", setup.told_step},
               {"left_out", setup.left_out}})
      .dump();
}

Control::Control(PacketSocket socket)
    : socket_(std::move(socket)),
      packets_(kWaitingPacketsMax),
      reader_([this](const std::stop_token& stop) {
        while (true) {
          std::optional<std::string> packet = socket_.receive();
          if (stop.stop_requested()) return;
          if (!packet) std::_Exit(kExitFailed);
          if (answer(*packet)) continue;
          packets_.push(std::move(*packet));
        }
      }) {}

Control::~Control() {
  reader_.request_stop();
  packets_.close();
  socket_.shut_down();
}

void Control::set_answer(std::function<void(int64_t)> answer) {
  const std::lock_guard lock(answer_mutex_);
  answer_ = std::move(answer);
}

/// A question must be answered while the training thread waits for its device or for others.
bool Control::answer(const std::string& packet) {
  const json message = try_parse_json(packet);
  if (message.is_discarded() || message.value("type", "") != "question") return false;
  const std::lock_guard lock(answer_mutex_);
  if (answer_) answer_(message.at("question").get<int64_t>());
  return true;
}

WorkerSetup Control::wait_for_setup(const std::function<void()>& open_device) {
  const auto next = [this] { return try_parse_json(packets_.pop().value_or("{}")); };
  const auto is_a = [](const json& message, const char* type) {
    return message.is_object() && message.value("type", "") == type;
  };
  json message = next();
  if (is_a(message, "open_device")) {
    open_device();
    message = next();
  }
  if (!is_a(message, "setup")) fail("the first message to a worker is not its setup");
  return {.rendezvous_dir = message.at("rendezvous_dir"),
          .resume_from = message.at("resume_from"),
          .start_from_shared = message.at("start_from_shared"),
          .start_step = message.at("start_step"),
          .first_exchange = message.at("first_exchange"),
          .data_shift = message.at("data_shift"),
          .plan_idx = message.at("plan_idx"),
          .slot_idx = message.at("slot_idx"),
          .examine = message.at("examine"),
          .check_data = message.at("check_data"),
          .sent_exchange = message.at("sent_exchange"),
          .saved_step = message.at("saved_step"),
          .evaluated_step = message.at("evaluated_step"),
          .told_step = message.at("told_step"),
          .left_out = message.at("left_out")};
}

void Control::listen(double timeout_s) {
  std::optional<std::string> packet = packets_.pop_for(timeout_s);
  while (packet) {
    handle(*packet);
    packet = packets_.pop_for(0);
  }
}

std::optional<int> Control::take_new_shares(int64_t data_step) {
  const auto end = new_shares_.upper_bound(data_step);
  if (end == new_shares_.begin()) return std::nullopt;
  const int plan_idx = std::prev(end)->second;
  new_shares_.erase(new_shares_.begin(), end);
  return plan_idx;
}

void Control::handle(const std::string& packet) {
  const json message = parse_json(packet);
  const std::string type = message.at("type");
  if (type == "go") {
    may_train_ = true;
  } else if (type == "weights") {
    has_weights_ = true;
  } else if (type == "merged") {
    merged_.insert(message.at("exchange").get<int64_t>());
  } else if (type == "stop_at") {
    stop_request_ =
        StopRequest{.step = message.at("step"), .with_checkpoint = message.at("with_checkpoint")};
  } else if (type == "others_at") {
    others_step_ = std::max(others_step_, message.at("step").get<int64_t>());
  } else if (type == "pause") {
    should_pause_ = true;
  } else if (type == "new_shares") {
    new_shares_[message.value("from_data_step", int64_t{0})] = message.at("plan_idx").get<int>();
  } else {
    fail("a worker does not know the message \"{}\"", type);
  }
}

}  // namespace pelago::train
