// What the benchmarks of the engine share: an engine with bound threads on random weights, and
// clients that ask, wait for the answer, and ask again.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "bench/serve/served_model.h"
#include "data/bpe/tokenizer_spec.h"
#include "serve/local/local_engine.h"

namespace pelago::bench {

/// Every token stands for some text, so that every token is seen when it comes.
inline data::Tokenizer bench_tokenizer() {
  data::TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) {
    spec.token_bytes.emplace_back(1, static_cast<char>(byte));
  }
  for (int word = 256; word < 32000; ++word) spec.token_bytes.push_back(fmt::format(" w{}", word));
  return data::Tokenizer::from_spec(std::move(spec));
}

struct LoadOptions {
  serve::WeightDtype weights = serve::WeightDtype::kBf16;
  int64_t num_pages = 512;
  serve::SpeculationOptions speculation = {};
};

inline std::unique_ptr<serve::LocalEngine> make_engine(const std::string& preset,
                                                       const LoadOptions& load) {
  serve::BatchOptions batch;
  batch.scheduler = {.step_tokens = 512, .sequences_max = 32};
  batch.speculation = load.speculation;
  serve::RunnerOptions runner = bound_options(load.weights);
  runner.num_pages = load.num_pages;
  runner.max_batch_tokens = 640;
  return std::make_unique<serve::LocalEngine>(
      open_cpu_runner(served_folder(preset), runner), bench_tokenizer(), batch);
}

/// What one request saw.
struct Served {
  std::vector<int32_t> tokens;
  double first_s = 0;  // to the first token
  double total_s = 0;
};

/// Runs the requests, num_clients of them at a time, in order.
inline std::vector<Served> serve_all(serve::LocalEngine& engine,
                                     const std::vector<serve::GenerateRequest>& requests,
                                     size_t num_clients) {
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  std::vector<Served> served(requests.size());
  size_t num_open = 0;
  for (size_t idx = 0; idx < requests.size(); ++idx) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return num_open < num_clients; });
      ++num_open;
    }
    const double begin_s = steady_now_s();
    const auto on_piece = [&, idx, begin_s](const serve::Piece& piece) {
      const double now_s = steady_now_s();
      const std::lock_guard lock(mutex);
      Served& one = served[idx];
      if (one.tokens.empty() && !piece.tokens.empty()) one.first_s = now_s - begin_s;
      one.tokens.insert(one.tokens.end(), piece.tokens.begin(), piece.tokens.end());
      if (!piece.is_last) return;
      one.total_s = now_s - begin_s;
      --num_open;
      changed.notify_all();
    };
    if (const auto id = engine.submit(requests[idx], on_piece); !id) fail("{}", id.error().message);
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return num_open == 0; });
  return served;
}

/// A greedy request for so many tokens.
inline serve::GenerateRequest greedy_request(std::vector<int32_t> prompt, int64_t num_new) {
  serve::GenerateRequest request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = num_new;
  request.sampling.temperature = 0;
  request.sampling.seed = 1;
  request.ignore_end = true;
  return request;
}

inline std::vector<int32_t> random_prompt(size_t num_tokens, Rng rng) {
  std::vector<int32_t> tokens(num_tokens);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng.next_below(8000));
  return tokens;
}

}  // namespace pelago::bench
