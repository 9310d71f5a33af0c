// What a coordinator has decided, on its way to the store and from there to the sites: durable
// first, then said. While the store cannot be reached, whatever rests on a decision that may be
// lost waits here, in order. Sites are told that the coordinator lives, so that none goes looking
// for another, and nothing else: what is not said then counts as lost on the line, and the next
// status of a site shows what it lacks.
#pragma once

#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "sites/protocol/round_options.h"

namespace pelago::sites {

class Outbox {
 public:
  /// Returns what may be said at once; the rest waits to be durable.
  std::optional<RoundOutput> put(RoundOutput output) {
    if (!output.writes.empty()) {
      waiting_.push_back(std::move(output));
      return std::nullopt;
    }
    if (!waiting_.empty()) {
      std::erase_if(output.messages, [](const auto& message) {
        return !std::holds_alternative<Alive>(message.second);
      });
    }
    return output;
  }
  bool is_waiting() const { return !waiting_.empty(); }
  /// The oldest that waits.
  const RoundOutput& first() const { return waiting_.front(); }
  /// It is durable now, and may be said.
  RoundOutput take_first() {
    RoundOutput output = std::move(waiting_.front());
    waiting_.pop_front();
    return output;
  }

 private:
  std::deque<RoundOutput> waiting_;
};

}  // namespace pelago::sites
