// A link inside one thread, on which a test moves frames by hand: any number of the one side's,
// then of the other's; and which it can cut.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "chips/ucx/frames/frame_link.h"

namespace pelago::serve {

class LoopWire {
 public:
  explicit LoopWire(size_t frame_bytes) : frame_bytes_(frame_bytes) {}

  /// Carries up to so many frames that the side has sent. Returns how many.
  int carry(size_t side, int num_frames) {
    int num_carried = 0;
    while (num_carried < num_frames && !sides_[side].queue.empty()) {
      const auto fill = std::move(sides_[side].queue.front());
      sides_[side].queue.pop_front();
      std::vector<std::byte> frame(frame_bytes_);
      const size_t num_bytes = fill(frame);
      PELAGO_ASSERT(num_bytes <= frame_bytes_, "a frame holds what is put into it");
      const Side& other = sides_[1 - side];
      if (num_bytes > 0 && other.is_open) {
        other.listener.on_frame(std::span(frame).first(num_bytes));
      }
      ++num_carried;
    }
    return num_carried;
  }
  void cut() {
    for (Side& side : sides_) {
      side.queue.clear();
      if (std::exchange(side.is_open, false)) side.listener.on_lost("the wire was cut");
    }
  }
  std::unique_ptr<chips::FrameLink> end(size_t side) { return std::make_unique<End>(*this, side); }

 private:
  struct Side {
    std::deque<chips::FrameLink::Fill> queue;
    chips::FrameLink::Listener listener;
    bool is_open = false;
  };
  class End final : public chips::FrameLink {
   public:
    End(LoopWire& wire, size_t side) : wire_(wire), side_(side) {}
    ~End() override {
      wire_.sides_[side_].is_open = false;
      wire_.cut();
    }
    void start(Listener listener) override {
      wire_.sides_[side_].listener = std::move(listener);
      wire_.sides_[side_].is_open = true;
    }
    void send(Fill fill) override {
      if (wire_.sides_[side_].is_open) wire_.sides_[side_].queue.push_back(std::move(fill));
    }
    size_t frame_bytes() const override { return wire_.frame_bytes_; }

   private:
    LoopWire& wire_;
    size_t side_;
  };

  const size_t frame_bytes_;
  std::array<Side, 2> sides_;
};

}  // namespace pelago::serve
