#include "train/rank/control.h"

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace pelago::train {

using nlohmann::json;

namespace {
constexpr size_t kWaitingPacketsMax = 256;
}

std::string to_json(const WorkerSetup& setup) {
  return json({{"type", "setup"},
               {"rendezvous_dir", setup.rendezvous_dir},
               {"resume_from", setup.resume_from},
               {"start_from_shared", setup.start_from_shared},
               {"start_step", setup.start_step}})
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
          packets_.push(std::move(*packet));
        }
      }) {}

Control::~Control() {
  reader_.request_stop();
  packets_.close();
  socket_.shut_down();
}

WorkerSetup Control::wait_for_setup() {
  const json message = json::parse(packets_.pop().value_or("{}"), nullptr, false);
  if (message.is_discarded() || message.value("type", "") != "setup") {
    fail("the first message to a worker is not its setup");
  }
  return {.rendezvous_dir = message.at("rendezvous_dir"),
          .resume_from = message.at("resume_from"),
          .start_from_shared = message.at("start_from_shared"),
          .start_step = message.at("start_step")};
}

void Control::listen(double timeout_s) {
  std::optional<std::string> packet = packets_.pop_for(timeout_s);
  while (packet) {
    handle(*packet);
    packet = packets_.pop_for(0);
  }
}

void Control::handle(const std::string& packet) {
  const json message = json::parse(packet);
  const std::string type = message.at("type");
  if (type == "go") {
    may_train_ = true;
  } else if (type == "merged") {
    merged_.insert(message.at("exchange").get<int64_t>());
  } else if (type == "stop_at") {
    stop_request_ =
        StopRequest{.step = message.at("step"), .with_checkpoint = message.at("with_checkpoint")};
  } else {
    fail("a worker does not know the message \"{}\"", type);
  }
}

}  // namespace pelago::train
