#include "serve/scheduler/fair_queue.h"

#include <algorithm>
#include <utility>

namespace pelago::serve {

namespace {

constexpr size_t kIdleUsersMax = 4096;  // names come from outside: memory must not grow with them

}  // namespace

void FairQueue::count(const Waiting& waiting, int64_t sign) {
  num_waiting_ += sign;
  num_tokens_ += sign * static_cast<int64_t>(waiting.prompt.size());
  if (waiting.pages) num_pages_ += sign * static_cast<int64_t>(waiting.pages->pages().size());
}

void FairQueue::push(Waiting waiting) {
  User& user = users_[waiting.user];
  if (user.waiting.empty()) user.served_tokens = std::max(user.served_tokens, level_);
  count(waiting, +1);
  user.waiting.push_back(std::move(waiting));
  if (users_.size() > kIdleUsersMax) forget_idle_users();
}

// Ties go to the request that came first: ids rise.
FairQueue::Users::iterator FairQueue::next_user() {
  auto best = users_.end();
  for (auto it = users_.begin(); it != users_.end(); ++it) {
    const User& user = it->second;
    if (user.waiting.empty()) continue;
    if (best == users_.end() || user.served_tokens < best->second.served_tokens ||
        (user.served_tokens == best->second.served_tokens &&
         user.waiting.front().request < best->second.waiting.front().request)) {
      best = it;
    }
  }
  return best;
}

const Waiting* FairQueue::front() const {
  const auto next = const_cast<FairQueue*>(this)->next_user();
  return next == users_.end() ? nullptr : &next->second.waiting.front();
}

Waiting FairQueue::pop() {
  const auto next = next_user();
  PELAGO_ASSERT(next != users_.end(), "pop() follows a front() that was not null");
  User& user = next->second;
  level_ = std::max(level_, user.served_tokens);
  Waiting waiting = std::move(user.waiting.front());
  user.waiting.pop_front();
  count(waiting, -1);
  return waiting;
}

bool FairQueue::erase(RequestId request) {
  for (auto& [name, user] : users_) {
    const auto found = std::ranges::find(user.waiting, request, &Waiting::request);
    if (found == user.waiting.end()) continue;
    count(*found, -1);
    user.waiting.erase(found);
    return true;
  }
  return false;
}

void FairQueue::charge(const std::string& user, int64_t num_tokens) {
  const auto found = users_.find(user);
  if (found != users_.end()) found->second.served_tokens += static_cast<uint64_t>(num_tokens);
}

void FairQueue::forget_idle_users() {
  std::erase_if(users_, [&](const auto& entry) {
    return entry.second.waiting.empty() && entry.second.served_tokens <= level_;
  });
}

}  // namespace pelago::serve
