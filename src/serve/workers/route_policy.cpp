#include "serve/workers/route_policy.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/files.h"

namespace pelago::serve {

RoutePolicy::RoutePolicy(size_t num_workers, const RouteOptions& options)
    : options_(options), workers_(num_workers) {
  PELAGO_ASSERT(options.page_tokens > 0, "pages hold tokens");
}

std::vector<uint64_t> RoutePolicy::marks_of(std::span<const int32_t> prompt) const {
  const auto page_tokens = static_cast<size_t>(options_.page_tokens);
  std::vector<uint64_t> marks;
  marks.reserve(prompt.size() / page_tokens);
  uint64_t before = 0;
  for (size_t begin = 0; begin + page_tokens <= prompt.size(); begin += page_tokens) {
    const uint64_t link[2] = {before, hash_u64(std::as_bytes(prompt.subspan(begin, page_tokens)))};
    before = hash_u64(std::as_bytes(std::span(link)));
    marks.push_back(before);
  }
  return marks;
}

size_t RoutePolicy::num_known(size_t worker_idx, std::span<const uint64_t> marks) const {
  const auto& places = workers_[worker_idx].places;
  const auto unknown =
      std::ranges::find_if_not(marks, [&](uint64_t mark) { return places.contains(mark); });
  return static_cast<size_t>(unknown - marks.begin());
}

int RoutePolicy::choose(std::span<const uint64_t> marks, std::span<const WorkerLoad> loads) const {
  PELAGO_ASSERT(loads.size() == workers_.size(), "every worker has a load");
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const WorkerLoad& load : loads) {
    if (load.is_open) least = std::min(least, load.num_sequences);
  }
  const int64_t most =
      std::max(least + options_.margin_sequences,
               static_cast<int64_t>(options_.margin_ratio * static_cast<double>(least)));
  const double worth = options_.known_share_min * static_cast<double>(marks.size());
  int best = -1;
  size_t best_known = 0;
  const auto is_better = [&](size_t idx, size_t known) {
    if (best < 0) return true;
    const auto other = static_cast<size_t>(best);
    if (known != best_known) return known > best_known;
    if (loads[idx].num_sequences != loads[other].num_sequences)
      return loads[idx].num_sequences < loads[other].num_sequences;
    return num_remembered(idx) < num_remembered(other);
  };
  for (size_t idx = 0; idx < loads.size(); ++idx) {
    if (!loads[idx].is_open || loads[idx].num_sequences > most) continue;
    size_t known = num_known(idx, marks);
    if (static_cast<double>(known) < worth) known = 0;
    if (!is_better(idx, known)) continue;
    best = static_cast<int>(idx);
    best_known = known;
  }
  return best;
}

// From the last page to the first: of one prompt the end is forgotten before the beginning, which
// other prompts may share.
void RoutePolicy::remember(size_t worker_idx, std::span<const uint64_t> marks) {
  Memory& memory = workers_[worker_idx];
  marks = marks.first(std::min(marks.size(), memory.num_marks_max));
  for (size_t i = marks.size(); i-- > 0;) {
    const auto known = memory.places.find(marks[i]);
    if (known != memory.places.end()) {
      memory.marks.splice(memory.marks.begin(), memory.marks, known->second);
    } else {
      memory.marks.push_front(marks[i]);
      memory.places[marks[i]] = memory.marks.begin();
    }
  }
  while (memory.marks.size() > memory.num_marks_max) {
    memory.places.erase(memory.marks.back());
    memory.marks.pop_back();
  }
}

void RoutePolicy::forget(size_t worker_idx, size_t num_pages) {
  workers_[worker_idx] = {.num_marks_max = num_pages, .marks = {}, .places = {}};
}

}  // namespace pelago::serve
