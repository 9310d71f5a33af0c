// Letters between sites and coordinator on one thread: handed over at once, or carried by
// transports that a test opens. None is lost.
#pragma once

#include <doctest/doctest.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "sites/protocol/messages.h"

namespace pelago::sites {

/// By name, the coordinator's too; each knows where the others are.
using Lines = std::map<std::string, std::unique_ptr<Transport>>;

class Post {
 public:
  using Hear =
      std::function<void(const std::string& from, const std::string& to, const Message& message)>;

  /// lines outlive the post; empty: letters are handed over at once.
  explicit Post(const Lines& lines) : lines_(&lines) {}

  // As on the line: what cannot be encoded and read again does not arrive.
  void send(const std::string& from, const std::string& to, Message message) {
    Frame frame = encode(from, std::move(message));
    if (lines_->empty()) {
      letters_.push_back({.from = from, .to = to, .frame = std::move(frame)});
    } else {
      REQUIRE(lines_->at(from)->send(to, std::move(frame)));
      ++num_on_lines_;
    }
  }

  /// Until none is on its way, those that hear() sends included.
  void deliver(const Hear& hear) {
    while (!letters_.empty() || num_on_lines_ > 0) {
      while (!letters_.empty()) {
        Letter letter = std::move(letters_.front());
        letters_.pop_front();
        hand_over(std::move(letter), hear);
      }
      for (const auto& [name, line] : *lines_) {
        const std::optional<Arrival> arrival = line->receive(0.0005);
        if (!arrival || !arrival->frame) continue;
        --num_on_lines_;
        hand_over({.from = arrival->peer, .to = name, .frame = *arrival->frame}, hear);
      }
    }
  }

 private:
  struct Letter {
    std::string from, to;
    Frame frame;
  };
  static void hand_over(Letter letter, const Hear& hear) {
    const auto message = decode(std::move(letter.frame));
    REQUIRE(message);
    hear(letter.from, letter.to, *message);
  }

  const Lines* lines_;
  std::deque<Letter> letters_;
  int64_t num_on_lines_ = 0;
};

}  // namespace pelago::sites
