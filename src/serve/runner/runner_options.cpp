#include "base/error.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {

void RunnerOptions::validate() const {
  if (page_tokens < 16 || page_tokens % 16 != 0 || page_tokens > 4096) {
    fail_usage("serve.page_tokens is {}: it must be a multiple of 16, at most 4096", page_tokens);
  }
  if (num_pages < 1) {
    fail_usage("serve.num_pages is {}: it must be at least 1", num_pages);
  }
  if (max_batch_tokens < 1 || max_batch_tokens > (1 << 20)) {
    fail_usage("serve.max_batch_tokens is {}: it must be between 1 and 2^20", max_batch_tokens);
  }

  if (group_size != 32 && group_size != 64 && group_size != 128 && group_size != 256) {
    fail_usage("serve.group_size is {}: it must be 32, 64, 128 or 256", group_size);
  }
  if (num_threads < 1 || (!cores.empty() && cores.size() < static_cast<size_t>(num_threads))) {
    fail_usage("serve.num_threads is {}: it must be between 1 and the {} cores to bind them to",
               num_threads,
               cores.size());
  }
}

}  // namespace pelago::serve
