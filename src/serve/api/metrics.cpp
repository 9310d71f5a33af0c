#include "serve/api/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace pelago::serve {

namespace {

void append_figure(
    std::string& out, const char* name, const char* kind, const char* help, double value) {
  out += fmt::format(
      "# HELP pelago_{0} {1}\n# TYPE pelago_{0} {2}\npelago_{0} {3}\n", name, help, kind, value);
}

void append_workers(std::string& out, const std::vector<WorkerStats>& workers) {
  if (workers.empty()) return;
  const auto family = [&](const char* name, const char* kind, const char* help, auto value_of) {
    out += fmt::format("# HELP pelago_{0} {1}\n# TYPE pelago_{0} {2}\n", name, help, kind);
    for (const WorkerStats& worker : workers) {
      out +=
          fmt::format("pelago_{}{{worker=\"{}\"}} {}\n", name, worker.worker_idx, value_of(worker));
    }
  };
  using Stats = const WorkerStats&;
  family("worker_up", "gauge", "1 while it takes requests.", [](Stats worker) {
    return worker.is_ready ? 1 : 0;
  });
  family("worker_pid", "gauge", "Its process.", [](Stats worker) { return worker.pid; });
  family("worker_lost_total", "counter", "Its processes that ended unasked.", [](Stats worker) {
    return worker.num_lost;
  });
  family("worker_sequences", "gauge", "Answers sent there and not ended.", [](Stats worker) {
    return worker.num_sequences;
  });
  family("worker_requests_running", "gauge", "Of them, being computed.", [](Stats worker) {
    return worker.engine.num_running;
  });
  family("worker_kv_pages_used", "gauge", "Pages that they hold.", [](Stats worker) {
    return worker.engine.num_pages_used;
  });
  family("worker_prompt_tokens", "gauge", "Tokens of prompts, by this process.", [](Stats worker) {
    return worker.engine.prompt_tokens;
  });
  family("worker_cached_tokens", "gauge", "Of them, found in its cache.", [](Stats worker) {
    return worker.engine.cached_tokens;
  });
  family("worker_completion_tokens", "gauge", "Tokens that it generated.", [](Stats worker) {
    return worker.engine.completion_tokens;
  });
  const auto is_split = [](Stats worker) { return worker.engine.num_prefill_sides > 0; };
  if (std::none_of(workers.begin(), workers.end(), is_split)) return;
  family("worker_prefill_up", "gauge", "1 while its prefill side reads prompts.", [](Stats worker) {
    return worker.engine.num_prefill_up;
  });
}

}  // namespace

void Metrics::Histogram::add(double seconds) {
  const auto bound = std::lower_bound(kBounds_s.begin(), kBounds_s.end(), seconds);
  ++counts[static_cast<size_t>(bound - kBounds_s.begin())];
  sum += seconds;
  ++num;
}

void Metrics::append(std::string& out,
                     const std::string& name,
                     const std::string& help,
                     const Histogram& histogram) {
  out += fmt::format("# HELP pelago_{0} {1}\n# TYPE pelago_{0} histogram\n", name, help);
  uint64_t below = 0;
  for (size_t i = 0; i < kBounds_s.size(); ++i) {
    below += histogram.counts[i];
    out += fmt::format("pelago_{}_bucket{{le=\"{}\"}} {}\n", name, kBounds_s[i], below);
  }
  out += fmt::format(
      "pelago_{0}_bucket{{le=\"+Inf\"}} {1}\npelago_{0}_sum {2}\npelago_{0}_count {1}\n",
      name,
      histogram.num,
      histogram.sum);
}

void Metrics::count_request(const std::string& route, int status, const std::string& who) {
  const std::lock_guard lock(mutex_);
  ++requests_[{.route = route, .who = who, .status = status}];
}

void Metrics::count_answer(const AnswerReport& report) {
  const std::lock_guard lock(mutex_);
  if (report.first_token_s > 0) first_token_.add(report.first_token_s);
  if (report.token_s > 0) token_.add(report.token_s);
  if (report.status == 200) total_.add(report.total_s);
}

std::string Metrics::text(const EngineStats& engine,
                          const std::vector<WorkerStats>& workers,
                          const HttpServerStats& http,
                          const std::string& model) const {
  const std::lock_guard lock(mutex_);
  std::string out = fmt::format(
      "# HELP pelago_model_info The model that is served.\n# TYPE pelago_model_info gauge\n"
      "pelago_model_info{{model={}}} 1\n",
      json_quoted(model));
  out +=
      "# HELP pelago_requests_total Requests that ended.\n# TYPE pelago_requests_total counter\n";
  for (const auto& [ended, count] : requests_) {
    out += fmt::format("pelago_requests_total{{route={},status=\"{}\",key={}}} {}\n",
                       json_quoted(ended.route),
                       ended.status,
                       json_quoted(ended.who),
                       count);
  }
  append(out, "time_to_first_token_seconds", "From the request to the first token.", first_token_);
  append(out, "time_per_token_seconds", "Between tokens of an answer, its mean.", token_);
  append(out, "request_seconds", "From the request to the end of a whole answer.", total_);
  const auto gauge = [&](const char* name, const char* help, double value) {
    append_figure(out, name, "gauge", help, value);
  };
  const auto counter = [&](const char* name, const char* help, uint64_t value) {
    append_figure(out, name, "counter", help, static_cast<double>(value));
  };
  gauge("requests_running", "Requests being computed.", static_cast<double>(engine.num_running));
  gauge("requests_waiting", "Requests in the queue.", static_cast<double>(engine.num_waiting));
  gauge("kv_pages", "Pages of KV cache.", static_cast<double>(engine.num_pages));
  gauge("kv_pages_used", "Pages that requests hold.", static_cast<double>(engine.num_pages_used));
  gauge("kv_pages_cached",
        "Pages kept for prompts that begin alike.",
        static_cast<double>(engine.num_pages_cached));
  counter("prompt_tokens_total", "Tokens of prompts.", engine.prompt_tokens);
  counter(
      "cached_tokens_total", "Tokens of prompts that the prefix cache held.", engine.cached_tokens);
  counter("completion_tokens_total", "Tokens generated.", engine.completion_tokens);
  counter("requests_cancelled_total", "Requests that were cancelled.", engine.num_cancelled);
  counter("requests_refused_total", "Requests that the engine refused.", engine.num_refused);
  counter("preemptions_total", "Requests put back for want of pages.", engine.num_preempted);
  counter("draft_tokens_total", "Tokens guessed ahead.", engine.draft_tokens);
  counter("draft_accepted_total", "Tokens guessed right.", engine.draft_accepted);
  counter("prompts_read_elsewhere_total",
          "Prompts that a split's prefill side read.",
          engine.num_read_elsewhere);
  gauge("prefill_sides",
        "Sides of a split that are to read prompts.",
        static_cast<double>(engine.num_prefill_sides));
  gauge("prefill_sides_up", "Of them, those that do.", static_cast<double>(engine.num_prefill_up));
  counter("prefill_restarts_total",
          "Starts of a prefill side that was lost.",
          engine.num_prefill_restarts);
  append_workers(out, workers);
  gauge("connections_open", "Connections of clients.", static_cast<double>(http.num_open));
  counter("connections_total", "Connections accepted.", http.num_accepted);
  counter("connections_evicted_total", "Idle connections closed to make room.", http.num_evicted);
  return out;
}

}  // namespace pelago::serve
