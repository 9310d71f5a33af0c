// What happens next, in virtual time. A 4-ary heap of small plain events: half the levels of a
// binary heap, and the four children of a node lie side by side, which is what a queue of a few
// thousand events is bound by (LaMarca and Ladner, "The Influence of Caches on the Performance of
// Heaps", 1996). Events at the same instant come out in the order in which they went in, so that a
// simulation with one seed has one course.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/error.h"

namespace pelago::plan {

/// One event. What kind, who and what mean is the business of whoever put it in.
struct Event {
  double at_s = 0;
  uint64_t order = 0;  // given by the queue
  uint32_t kind = 0;
  uint32_t who = 0;
  uint32_t what = 0;
  uint32_t version = 0;  // of what it is about: an event of an older one is stale
};

class EventQueue {
 public:
  void push(double at_s, uint32_t kind, uint32_t who, uint32_t what = 0, uint32_t version = 0) {
    const Event event{at_s, next_order_++, kind, who, what, version};
    heap_.push_back(event);
    size_t at = heap_.size() - 1;
    while (at > 0) {
      const size_t parent = (at - 1) / kWidth;
      if (!is_before(event, heap_[parent])) break;
      heap_[at] = heap_[parent];
      at = parent;
    }
    heap_[at] = event;
  }

  bool is_empty() const { return heap_.empty(); }
  const Event& first() const { return heap_.front(); }

  Event pop() {
    PELAGO_ASSERT(!heap_.empty(), "only an event that is there can be taken");
    const Event top = heap_.front();
    const Event last = heap_.back();
    heap_.pop_back();
    num_popped_ += 1;
    if (!heap_.empty()) sink(last);
    return top;
  }

  /// Forgets what has not happened yet; the count of what has happened stays.
  void clear() { heap_.clear(); }
  /// Events taken since the queue was made.
  uint64_t num_popped() const { return num_popped_; }

 private:
  static constexpr size_t kWidth = 4;

  static bool is_before(const Event& a, const Event& b) {
    return a.at_s < b.at_s || (a.at_s == b.at_s && a.order < b.order);
  }

  /// Puts event where it belongs, from the top on.
  void sink(const Event& event) {
    const size_t count = heap_.size();
    size_t at = 0;
    for (size_t child = 1; child < count; child = kWidth * at + 1) {
      const size_t end = child + kWidth < count ? child + kWidth : count;
      size_t least = child;
      for (size_t other = child + 1; other < end; ++other) {
        if (is_before(heap_[other], heap_[least])) least = other;
      }
      if (!is_before(heap_[least], event)) break;
      heap_[at] = heap_[least];
      at = least;
    }
    heap_[at] = event;
  }

  std::vector<Event> heap_;
  uint64_t next_order_ = 0;
  uint64_t num_popped_ = 0;
};

}  // namespace pelago::plan
