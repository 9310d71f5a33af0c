// Where an engine has its prompts read, if not by its own passes: on other chips, whose keys and
// values then come here. The engine draws every token itself, the first one too: all that is known
// of a request but its keys and values stays in one place, and the prompt's last token is computed
// here, so that neither logits nor the state of drawing ever travel.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "serve/pages/page_pool.h"
#include "serve/runner/model_runner.h"
#include "serve/scheduler/fair_queue.h"

namespace pelago::serve {

/// Belongs to the engine's thread.
class PromptReader {
 public:
  PromptReader() = default;
  PromptReader(const PromptReader&) = delete;
  PromptReader& operator=(const PromptReader&) = delete;
  virtual ~PromptReader() = default;

  /// Before anything else. Pages are taken from the pool and written in the runner's memory; both
  /// outlive the reader. wake: called on any thread when take_ready() has something.
  virtual void start(PagePool& pool, ModelRunner& runner, std::function<void()> wake) = 0;
  /// Gives all pages back; wake is not called any more.
  virtual void stop() = 0;

  /// Takes a prompt that is better read elsewhere; false: it is left as it was.
  virtual bool offer(Waiting& waiting) = 0;
  /// Forgets a request and frees its pages. False if it is not here.
  virtual bool erase(RequestId request) = 0;

  struct Room {
    int64_t num_pages_kept = 0;     // that the longest sequence may need
    int64_t num_pages_waiting = 0;  // of what take_ready() gave and nobody has admitted yet
    int64_t num_running = 0;        // sequences that grow meanwhile
  };
  /// Prompts that were read, with their pages, and those that are to be read here after all,
  /// without. Also sends new ones on their way, as far as there is room for their pages.
  virtual std::vector<Waiting> take_ready(const Room& room) = 0;

  virtual uint64_t num_read() const = 0;           // prompts, elsewhere; any thread
  virtual bool is_up() const = 0;                  // somebody reads elsewhere now; any thread
  virtual uint64_t num_restarts() const = 0;       // of who reads elsewhere; any thread
  virtual int64_t num_waiting() const = 0;         // requests that are here
  virtual int64_t num_waiting_tokens() const = 0;  // of their prompts
};

}  // namespace pelago::serve
