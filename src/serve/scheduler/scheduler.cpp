#include "serve/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

namespace pelago::serve {

Scheduler::Scheduler(PagePool& pool, const SchedulerLimits& limits) : pool_(pool), limits_(limits) {
  PELAGO_ASSERT(limits.step_tokens > 0 && limits.sequences_max > 0, "limits leave room for one");
}

void Scheduler::add(Waiting waiting) {
  const auto num_prompt = static_cast<int64_t>(waiting.prompt.size());
  PELAGO_ASSERT(num_prompt > 0 && num_prompt < int64_t{pool_.num_pages()} * pool_.page_tokens(),
                "what can never run was refused before");
  PELAGO_ASSERT(waiting.num_choices >= 1 && waiting.num_choices <= limits_.rows_max(),
                "what can never run was refused before");
  queue_.push(std::move(waiting));
}

StepPlan Scheduler::plan_step() {
  StepPlan plan;
  int64_t num_decoded = 0;
  for (const auto& sequence : running_) {
    if (sequence->is_decoding()) num_decoded += 1 + static_cast<int64_t>(sequence->draft.size());
  }
  // However many decode, prompts get on by a page a pass.
  budget_ = std::max<int64_t>(limits_.step_tokens - num_decoded, pool_.page_tokens());
  num_taken_ = 0;
  const uint64_t num_preemptions_before = num_preemptions_;
  serve_running(plan);
  if (num_preemptions_ == num_preemptions_before) admit(plan);
  return plan;
}

void Scheduler::spend(int64_t num_tokens, bool reaches_end) {
  budget_ -= num_tokens;
  num_taken_ += num_tokens;
  if (reaches_end && num_taken_ >= limits_.enough_tokens) budget_ = 0;
}

void Scheduler::share_with(Sequence& sequence, int64_t num_tokens, StepPlan& plan) {
  plan.shares.push_back({.sequence = &sequence,
                         .num_tokens = num_tokens,
                         .reaches_end = num_tokens == sequence.num_pending(),
                         .is_first = !sequence.was_begun});
  sequence.was_begun = true;
}

// How many tokens of the sequence, in whole pages, one before it computes or has computed.
int64_t Scheduler::num_from_others(size_t running_idx) const {
  const Sequence& sequence = *running_[running_idx];
  int64_t most = 0;
  for (size_t idx = 0; idx < running_idx; ++idx) {
    const Sequence& other = *running_[idx];
    const auto num_alike =
        std::ranges::mismatch(sequence.tokens, other.tokens).in1 - sequence.tokens.begin();
    const int64_t num_useful = std::min<int64_t>(num_alike, sequence.num_tokens() - 1);
    const int64_t page_tokens = pool_.page_tokens();
    if (other.num_computed < num_useful / page_tokens * page_tokens) {
      most = std::max(most, num_useful / page_tokens * page_tokens);
    }
  }
  return most;
}

// False while pages that it can use are being computed for another one.
bool Scheduler::begin(size_t running_idx) {
  Sequence& sequence = *running_[running_idx];
  if (sequence.has_begun) return true;  // read elsewhere
  const int64_t num_to_come = num_from_others(running_idx);
  const int64_t num_found = sequence.pages.take_prefix(sequence.tokens, sequence.num_tokens() - 1);
  sequence.has_begun = num_to_come <= num_found;
  sequence.num_computed = sequence.has_begun ? num_found : 0;
  if (!sequence.has_begun) sequence.pages.clear();
  if (!sequence.was_begun) sequence.num_cached = sequence.num_computed;
  return sequence.has_begun;
}

void Scheduler::serve_running(StepPlan& plan) {
  for (size_t idx = 0; idx < running_.size(); ++idx) {
    Sequence& sequence = *running_[idx];
    const bool had_begun = sequence.has_begun;
    if (!had_begun && (budget_ == 0 || !begin(idx))) continue;
    const bool is_decoding = had_begun && sequence.is_decoding();
    const int64_t num_tokens = is_decoding ? 1 : std::min(sequence.num_pending(), budget_);
    if (num_tokens == 0) continue;
    if (num_tokens < sequence.num_pending()) sequence.draft.clear();
    if (!make_room(idx, num_tokens, plan)) return;  // it was the last one, and gave up itself
    if (!is_decoding) spend(num_tokens, num_tokens == sequence.num_pending());
    share_with(sequence, num_tokens, plan);
  }
}

bool Scheduler::make_room(size_t running_idx, int64_t num_tokens, StepPlan& plan) {
  Sequence& sequence = *running_[running_idx];
  while (true) {
    const auto num_draft = static_cast<int64_t>(sequence.draft.size());
    const int64_t num_wanted = sequence.num_computed + num_tokens + num_draft;
    if (sequence.pages.grow(sequence.num_computed, num_wanted, plan.copies)) return true;
    if (num_draft > 0) {
      sequence.draft.clear();  // a guess is worth nobody's pages
      continue;
    }
    const bool is_last = running_idx + 1 == running_.size();
    PELAGO_ASSERT(!is_last || running_idx > 0, "a sequence alone fits into the pool");
    preempt_last();
    if (is_last) return false;
  }
}

void Scheduler::preempt_last() {
  std::unique_ptr<Sequence> sequence = std::move(running_.back());
  running_.pop_back();
  sequence->pages.clear();
  sequence->num_computed = 0;
  sequence->has_begun = false;
  sequence->draft.clear();
  ++num_preemptions_;
  const auto place = std::ranges::upper_bound(
      preempted_, sequence->turn, {}, [](const auto& other) { return other->turn; });
  preempted_.insert(place, std::move(sequence));
}

bool Scheduler::has_room_for(const PageTable& pages, int64_t num_tokens) const {
  if (running_.empty()) return true;
  // One page more for each that runs, or it would be preempted as soon as somebody's page is full.
  const int64_t num_wanted = pages.num_missing(num_tokens + 1) + num_running();
  return num_wanted <= pool_.num_available();
}

bool Scheduler::has_place_for(int num_choices) const {
  auto num_taken = static_cast<int>(running_.size());
  for (const auto& sequence : running_) num_taken += sequence->num_forks;
  return num_taken == 0 || num_taken + num_choices <= limits_.sequences_max;
}

std::unique_ptr<Sequence> Scheduler::next_to_admit() {
  PageTable pages(pool_);
  if (!preempted_.empty()) {
    std::unique_ptr<Sequence>& first = preempted_.front();
    if (!has_place_for(1 + first->num_forks)) return nullptr;
    pages.take_prefix(first->tokens, first->num_tokens() - 1);
    if (!has_room_for(pages, first->num_tokens())) return nullptr;
    std::unique_ptr<Sequence> sequence = std::move(first);
    preempted_.erase(preempted_.begin());
    return sequence;
  }
  const Waiting* front = queue_.front();
  if (front == nullptr || !has_place_for(front->num_choices)) return nullptr;
  const auto num_prompt = static_cast<int64_t>(front->prompt.size());
  // What was read elsewhere has its pages already, for all of the prompt but its last token.
  const int64_t num_found =
      front->pages ? num_prompt - 1 : pages.take_prefix(front->prompt, num_prompt - 1);
  if (!has_room_for(front->pages ? *front->pages : pages, num_prompt)) return nullptr;
  Waiting waiting = queue_.pop();
  const int64_t num_cached = waiting.pages ? waiting.num_cached : num_found;
  auto sequence = std::make_unique<Sequence>(pool_);
  sequence->request = waiting.request;
  sequence->tokens = std::move(waiting.prompt);
  sequence->num_prompt = num_prompt;
  if (waiting.pages) {
    sequence->num_cached = waiting.num_cached;
    sequence->num_computed = num_found;
    sequence->pages = std::move(*waiting.pages);
    sequence->has_begun = true;
  }
  sequence->num_forks = waiting.num_choices - 1;
  sequence->turn = next_turn_++;
  queue_.charge(waiting.user, num_prompt - num_cached);
  return sequence;
}

void Scheduler::admit(StepPlan& plan) {
  while (budget_ > 0) {
    const bool is_resumed = !preempted_.empty();
    std::unique_ptr<Sequence> admitted = next_to_admit();
    if (admitted == nullptr) return;
    Sequence& sequence = *admitted;
    const auto place = std::ranges::upper_bound(
        running_, sequence.turn, {}, [](const auto& other) { return other->turn; });
    const auto running_idx = static_cast<size_t>(place - running_.begin());
    running_.insert(place, std::move(admitted));
    if (!is_resumed) plan.started.push_back(&sequence);
    if (!begin(running_idx)) continue;
    const int64_t num_tokens = std::min(sequence.num_pending(), budget_);
    const bool has_grown =
        sequence.pages.grow(sequence.num_computed, sequence.num_computed + num_tokens, plan.copies);
    PELAGO_ASSERT(has_grown, "only what has room is admitted");
    spend(num_tokens, num_tokens == sequence.num_pending());
    share_with(sequence, num_tokens, plan);
  }
}

Sequence& Scheduler::fork(Sequence& sequence, int choice) {
  PELAGO_ASSERT(sequence.num_forks > 0, "places were kept for as many as were asked for");
  --sequence.num_forks;
  auto twin = std::make_unique<Sequence>(pool_);
  twin->request = sequence.request;
  twin->choice = choice;
  twin->tokens = sequence.tokens;
  twin->num_prompt = sequence.num_prompt;
  twin->num_computed = sequence.num_computed;
  twin->pages = sequence.pages.share();
  twin->has_begun = twin->was_begun = true;
  twin->turn = next_turn_++;
  running_.push_back(std::move(twin));
  return *running_.back();
}

void Scheduler::remove(const Sequence& sequence) {
  const auto is_it = [&](const auto& other) { return other.get() == &sequence; };
  const bool found = std::erase_if(running_, is_it) + std::erase_if(preempted_, is_it) == 1;
  PELAGO_ASSERT(found, "a sequence is removed once");
}

}  // namespace pelago::serve
