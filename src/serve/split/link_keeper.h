// Who makes a reader's links, one after another: where the other end of one has gone, the next one
// follows by itself. The reader takes it when it comes by; nobody waits for the other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "chips/ucx/frames/frame_link.h"

namespace pelago::serve {

class LinkKeeper {
 public:
  LinkKeeper() = default;
  LinkKeeper(const LinkKeeper&) = delete;
  LinkKeeper& operator=(const LinkKeeper&) = delete;
  virtual ~LinkKeeper() = default;

  /// Of a link that the reader was given: its number, and what happened since the last look.
  struct News {
    std::string lost;                        // why the other end has gone; empty: not that I know
    std::unique_ptr<chips::FrameLink> link;  // what follows it; null: nothing yet
    uint64_t link_idx = 0;                   // of link; the first one, which nobody takes here: 0
  };

  /// wake: called on any thread when there are news, or num_restarts() is another.
  virtual void start(std::function<void()> wake) = 0;
  /// Each is told once; what is lost before what follows it.
  virtual News news() = 0;
  /// The reader has closed a link that is of no use any more. One that is known to be lost, or was
  /// followed by another, is no error. Any thread.
  virtual void note_lost(uint64_t link_idx, const std::string& why) = 0;
  /// No new links, and no wake is called after it. The other end stays until this object goes.
  virtual void close() = 0;

  virtual uint64_t num_restarts() const = 0;  // starts of another end but the first; any thread
};

}  // namespace pelago::serve
