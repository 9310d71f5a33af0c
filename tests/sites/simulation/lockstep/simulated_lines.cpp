#include "sites/simulation/lockstep/simulated_lines.h"

#include <algorithm>

namespace pelago::sites {

void SimulatedLines::send(const std::string& to,
                          const std::string& address,
                          Frame frame,
                          double now_s) {
  constexpr double kResendS = 0.2;
  double due_s = now_s + 0.005 + options_.jitter_s * rng_.next_uniform();
  while (rng_.next_uniform() < options_.loss) due_s += kResendS;
  std::deque<Waiting>& queue = queues_[{frame.from, to}];
  if (!queue.empty()) due_s = std::max(due_s, queue.back().due_s);
  queue.push_back({.due_s = due_s, .address = address, .frame = std::move(frame)});
}

void SimulatedLines::set_blocked(const std::string& from, const std::string& to, bool is_blocked) {
  if (is_blocked) {
    blocked_.emplace(from, to);
  } else {
    blocked_.erase({from, to});
  }
}

void SimulatedLines::calm() {
  options_.loss = 0;
  blocked_.clear();
}

void SimulatedLines::end(const std::string& site) {
  std::erase_if(queues_, [&](const auto& queue) { return queue.first.first == site; });
}

std::vector<std::pair<std::string, int64_t>> SimulatedLines::give_up(const std::string& site,
                                                                     double now_s) {
  std::vector<std::pair<std::string, int64_t>> lost;
  for (auto& [ends, queue] : queues_) {
    if (ends.first != site || queue.empty() || !blocked_.contains(ends)) continue;
    if (now_s - queue.front().due_s < options_.patience_s) continue;
    lost.emplace_back(ends.second, static_cast<int64_t>(queue.size()));
    num_given_up_ += lost.back().second;
    queue.clear();
  }
  return lost;
}

std::vector<Frame> SimulatedLines::take(const std::string& site,
                                        const std::string& address,
                                        double now_s) {
  std::vector<Frame> come;
  for (auto& [ends, queue] : queues_) {
    if (ends.second != site || queue.empty()) continue;
    if (blocked_.contains(ends)) continue;
    while (!queue.empty() && queue.front().due_s <= now_s) {
      // To an earlier process of the site: nobody is there any more.
      if (queue.front().address == address) come.push_back(std::move(queue.front().frame));
      queue.pop_front();
    }
  }
  return come;
}

}  // namespace pelago::sites
