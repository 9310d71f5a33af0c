// Who is served next: the user who got least. Each user has a counter of tokens served; the queue
// gives the first request of the user with the lowest counter (virtual token counters,
// arXiv:2401.00588). A user who comes back after a pause starts at the level of those who waited
// meanwhile: being away earns nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "serve/engine.h"
#include "serve/pages/page_table.h"

namespace pelago::serve {

/// A request that waits for its first pages.
struct Waiting {
  RequestId request = 0;
  std::string user;
  std::vector<int32_t> prompt;
  int num_choices = 1;
  /// Its pages, where the prompt was read elsewhere, all of it but its last token.
  std::optional<PageTable> pages = std::nullopt;
  int64_t num_cached = 0;  // of the tokens in pages: those that were here before
};

class FairQueue {
 public:
  void push(Waiting waiting);
  /// The next one; null if nobody waits.
  const Waiting* front() const;
  /// Takes the next one out.
  Waiting pop();
  /// Takes out a request wherever it stands. False if it does not wait here.
  bool erase(RequestId request);
  /// Tokens were computed for a user.
  void charge(const std::string& user, int64_t num_tokens);

  int64_t size() const { return num_waiting_; }
  int64_t num_tokens() const { return num_tokens_; }  // of the prompts that wait
  int64_t num_pages() const { return num_pages_; }    // that they hold

 private:
  struct User {
    std::deque<Waiting> waiting;
    uint64_t served_tokens = 0;
  };
  using Users = std::map<std::string, User>;
  Users::iterator next_user();
  void forget_idle_users();

  Users users_;
  uint64_t level_ = 0;  // the counter of the user served last
  void count(const Waiting& waiting, int64_t sign);
  int64_t num_waiting_ = 0, num_tokens_ = 0, num_pages_ = 0;
};

}  // namespace pelago::serve
