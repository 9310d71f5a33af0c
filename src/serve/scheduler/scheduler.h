// What the next forward pass computes. Continuous batching (Orca, OSDI 2022) with chunked prefill
// (Sarathi, arXiv:2403.02310): every pass takes the next token of every sequence that decodes and
// fills what is left of its budget with pieces of prompts, so that a long prompt never stops the
// others. Sequences are served in the order of admission. Where several begin alike, the first one
// computes what they share and the others wait for its pages. When pages run out, the one admitted
// last gives up all of its pages and is computed anew later, usually from remembered pages; the
// oldest is never disturbed, so somebody always comes to an end.
//
// Pure bookkeeping: no clock, no threads, no arithmetic on numbers that a model made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "serve/pages/page_pool.h"
#include "serve/scheduler/fair_queue.h"
#include "serve/scheduler/sequence.h"

namespace pelago::serve {

struct SchedulerLimits {
  int64_t step_tokens = 512;  // of a pass: bounds activations, and how long decoders wait for it
  /// Of prompts in a pass, after which one that has reached its end shares it with no other: a
  /// first token waits for the whole pass, and from some number of rows on two passes take about
  /// as long as one of both.
  int64_t enough_tokens = 64;
  int sequences_max = 64;  // at once: past some number all only become slower
  int choices_max = 64;    // of one request; one with more than sequences_max runs alone
  int rows_max() const { return std::max(sequences_max, choices_max); }  // that decode at once
};

/// A sequence's part in the next pass.
struct Share {
  Sequence* sequence = nullptr;  // the scheduler's
  int64_t num_tokens = 0;        // of its tokens that are not computed yet
  bool reaches_end = false;      // then its draft is computed too, and logits are wanted
  bool is_first = false;         // of the sequence; what lies before it was found in the cache
};

struct StepPlan {
  std::vector<Share> shares;
  std::vector<PageCopy> copies;    // to be carried out before the pass, in order
  std::vector<Sequence*> started;  // admitted for the first time
};

class Scheduler {
 public:
  /// pool outlives the scheduler.
  Scheduler(PagePool& pool, const SchedulerLimits& limits);

  /// A prompt must fit into the pool with one token more, num_choices into the limits. Pages that
  /// come with waiting prompts leave room for the longest sequence beside them.
  void add(Waiting waiting);
  /// What to compute next; no shares if there is nothing to do.
  StepPlan plan_step();
  /// A sequence that shares all pages of this one, for another choice of the same request.
  Sequence& fork(Sequence& sequence, int choice);
  /// Ends a sequence; its pages are free at once.
  void remove(const Sequence& sequence);
  /// Takes a request out of the queue, if it waits there. Sequences are the caller's to remove.
  bool erase_waiting(RequestId request) { return queue_.erase(request); }
  /// How many tokens a pass may take from now on, for a caller who measures passes.
  void set_step_tokens(int64_t step_tokens) { limits_.step_tokens = step_tokens; }

  /// Those with pages, by turn.
  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return queue_.size() + static_cast<int64_t>(preempted_.size()); }
  int64_t num_waiting_tokens() const { return queue_.num_tokens(); }  // of prompts in the queue
  int64_t num_waiting_pages() const { return queue_.num_pages(); }    // held meanwhile
  uint64_t num_preemptions() const { return num_preemptions_; }

  /// Tokens were computed for a user: the queue remembers.
  void charge(const std::string& user, int64_t num_tokens) { queue_.charge(user, num_tokens); }

 private:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;
  void serve_running(StepPlan& plan);
  void admit(StepPlan& plan);
  bool make_room(size_t running_idx, int64_t num_tokens, StepPlan& plan);
  bool has_room_for(const PageTable& pages, int64_t num_tokens) const;
  void preempt_last();
  int64_t num_from_others(size_t running_idx) const;
  bool begin(size_t running_idx);
  void spend(int64_t num_tokens, bool reaches_end);
  void share_with(Sequence& sequence, int64_t num_tokens, StepPlan& plan);
  std::unique_ptr<Sequence> next_to_admit();
  bool has_place_for(int num_choices) const;

  PagePool& pool_;
  SchedulerLimits limits_;
  FairQueue queue_;
  Sequences running_;      // by turn
  Sequences preempted_;    // by turn
  int64_t budget_ = 0;     // prompt tokens that the pass being planned may still take
  int64_t num_taken_ = 0;  // and those that it has
  uint64_t next_turn_ = 0, num_preemptions_ = 0;
};

}  // namespace pelago::serve
