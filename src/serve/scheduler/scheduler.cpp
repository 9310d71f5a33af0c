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
  PELAGO_ASSERT(waiting.num_choices >= 1 && waiting.num_choices <= limits_.sequences_max,
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
  const uint64_t num_preemptions_before = num_preemptions_;
  serve_running(plan);
  if (num_preemptions_ == num_preemptions_before) admit(plan);
  return plan;
}

void Scheduler::share_with(Sequence& sequence, int64_t num_tokens, StepPlan& plan) {
  plan.shares.push_back({.sequence = &sequence,
                         .num_tokens = num_tokens,
                         .reaches_end = num_tokens == sequence.num_pending()});
}

void Scheduler::serve_running(StepPlan& plan) {
  for (size_t idx = 0; idx < running_.size(); ++idx) {
    Sequence& sequence = *running_[idx];
    const bool is_decoding = sequence.is_decoding();
    const int64_t num_tokens = is_decoding ? 1 : std::min(sequence.num_pending(), budget_);
    if (num_tokens == 0) continue;
    if (num_tokens < sequence.num_pending()) sequence.draft.clear();
    if (!make_room(idx, num_tokens, plan)) return;  // it was the last one, and gave up itself
    if (!is_decoding) budget_ -= num_tokens;
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

int Scheduler::num_to_come() const {
  int num_forks = 0;
  for (const auto& sequence : running_) num_forks += sequence->num_forks;
  return num_forks;
}

std::unique_ptr<Sequence> Scheduler::next_to_admit() {
  const auto num_taken = static_cast<int>(running_.size()) + num_to_come();
  PageTable pages(pool_);
  if (!preempted_.empty()) {
    std::unique_ptr<Sequence>& first = preempted_.front();
    if (num_taken + 1 + first->num_forks > limits_.sequences_max) return nullptr;
    const int64_t num_found = pages.take_prefix(first->tokens, first->num_tokens() - 1);
    if (!has_room_for(pages, first->num_tokens())) return nullptr;
    first->pages = std::move(pages);
    first->num_computed = num_found;
    std::unique_ptr<Sequence> sequence = std::move(first);
    preempted_.erase(preempted_.begin());
    return sequence;
  }
  const Waiting* front = queue_.front();
  if (front == nullptr || num_taken + front->num_choices > limits_.sequences_max) return nullptr;
  const auto num_prompt = static_cast<int64_t>(front->prompt.size());
  // What was read elsewhere has its pages already, for all of the prompt but its last token.
  const int64_t num_found =
      front->pages ? num_prompt - 1 : pages.take_prefix(front->prompt, num_prompt - 1);
  if (!has_room_for(front->pages ? *front->pages : pages, num_prompt)) return nullptr;
  Waiting waiting = queue_.pop();
  const int64_t num_cached = waiting.pages ? waiting.num_cached : num_found;
  if (waiting.pages) pages = std::move(*waiting.pages);
  auto sequence = std::make_unique<Sequence>(pool_);
  sequence->request = waiting.request;
  sequence->tokens = std::move(waiting.prompt);
  sequence->num_prompt = num_prompt;
  sequence->num_cached = num_cached;
  sequence->num_computed = num_found;
  sequence->pages = std::move(pages);
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
    running_.insert(place, std::move(admitted));
    const int64_t num_tokens = std::min(sequence.num_pending(), budget_);
    const bool has_grown =
        sequence.pages.grow(sequence.num_computed, sequence.num_computed + num_tokens, plan.copies);
    PELAGO_ASSERT(has_grown, "only what has room is admitted");
    budget_ -= num_tokens;
    share_with(sequence, num_tokens, plan);
    if (!is_resumed) plan.started.push_back(&sequence);
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
