// The side of a split engine that reads prompts. Orders come over a link, first come first served;
// each is computed in pieces of a pass's tokens, and the pages that a pass has filled go out layer
// by layer while it goes on with the next layer, then the next piece. Nothing is drawn here: the
// decode side computes a prompt's last token itself.
//
// A prompt is begun when all of its pages can be had, so nobody is ever preempted. Its pages are
// kept until the last has been sent: a slow line fills the pool, and then holds up the next prompt.
// They are remembered, so that the next prompt which begins alike is not computed again.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "chips/ucx/frames/frame_link.h"
#include "serve/pages/page_pool.h"
#include "serve/pages/page_table.h"
#include "serve/runner/model_runner.h"
#include "serve/split/wire.h"

namespace pelago::serve {

struct PrefillOptions {
  int64_t step_tokens = 512;  // of a pass: the shorter, the sooner the first pages leave
  uint64_t model_key = 0;     // of the weights; the decode side must have the same
};

struct PrefillStats {
  int64_t num_orders = 0;      // under way
  int64_t num_pages_used = 0;  // held for them
  uint64_t num_tokens_computed = 0, num_orders_done = 0;
};

/// Belongs to one thread, the link's calls apart.
class PrefillSide {
 public:
  /// The runner outlives me. Throws Failure if a page's layer does not fit into a frame.
  PrefillSide(ModelRunner& runner,
              std::unique_ptr<chips::FrameLink> link,
              const PrefillOptions& options);
  ~PrefillSide();
  PrefillSide(const PrefillSide&) = delete;
  PrefillSide& operator=(const PrefillSide&) = delete;

  /// Serves until it is stopped or the link is lost. Returns why: empty if it was stopped.
  std::string run(const std::stop_token& stop);
  /// One pass. False if there was nothing to compute.
  bool step();
  PrefillStats stats() const;

 private:
  struct Sending;
  struct Order;
  struct Part;
  struct Mail;
  void on_frame(std::span<const std::byte> frame);
  void read_mail();
  void read_order(const Mail& mail);
  void admit();
  void retire();
  void send_pages(Order& order, int64_t layer_idx, size_t begin, size_t end);
  size_t fill(std::span<std::byte> frame,
              SplitHead head,
              const std::vector<int32_t>& pages,
              Sending& sending);
  void send_layer(int64_t layer_idx);
  size_t layer_bytes() const;
  void notice();

  ModelRunner& runner_;  // outlives me
  const PrefillOptions options_;
  PagePool pool_;
  std::deque<std::unique_ptr<Order>> orders_;  // in the order they came
  std::vector<Part> parts_;                    // of the pass that is on
  int64_t num_layers_sent_ = 0;                // of that pass
  PrefillStats totals_;

  mutable std::mutex mail_mutex_;  // guards what follows
  std::condition_variable_any noticed_;
  std::vector<Mail> mail_;
  bool has_news_ = false;
  std::string lost_;  // empty: the link is there

  std::unique_ptr<chips::FrameLink> link_;  // last: its thread uses what is above
};

}  // namespace pelago::serve
