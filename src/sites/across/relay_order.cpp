#include "sites/across/relay_order.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

namespace pelago::sites {

Frame relay_frame(const std::string& from, const RelayHead& head, std::string part) {
  Frame frame{.from = from,
              .kind = kRelayKind,
              .head = std::string(sizeof head, '\0'),
              .payload = std::move(part)};
  std::memcpy(frame.head.data(), &head, sizeof head);
  return frame;
}

bool read_relay_head(const Frame& frame, RelayHead& head) {
  if (frame.head.size() != sizeof head) return false;
  std::memcpy(&head, frame.head.data(), sizeof head);
  return true;
}

std::vector<RelayPart> RelayOrder::start(int64_t start_number) {
  start_number_ = start_number;
  std::vector<RelayPart> given;
  for (Frame& frame : std::exchange(held_, {})) {
    for (RelayPart& part : take(std::move(frame))) given.push_back(std::move(part));
  }
  return given;
}

std::vector<RelayPart> RelayOrder::take(Frame frame) {
  RelayHead head;
  if (!read_relay_head(frame, head) || head.start_number < start_number_) return {};
  if (head.start_number > start_number_) {
    held_.push_back(std::move(frame));
    if (held_.size() > kHeldMax) held_.pop_front();
    return {};
  }
  if (!failure_.empty()) return {};
  uint64_t& expected = coming_[frame.from];
  if (head.sequence != expected) {
    failure_ = fmt::format("the line from site {} lost {} messages: it was broken for too long",
                           frame.from,
                           head.sequence - expected);
    return {};
  }
  ++expected;
  std::vector<RelayPart> given(1);
  given[0] = {.header = head.header, .bytes = std::move(frame.payload)};
  return given;
}

}  // namespace pelago::sites
