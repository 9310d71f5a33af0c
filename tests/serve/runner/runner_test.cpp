// The runner against the trainer's transformer: same weights, same tokens, whatever the chunks and
// wherever the pages.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"
#include "base/threads.h"
#include "data/bpe/tokenizer_spec.h"
#include "model/model_support.h"
#include "model/plain_transformer.h"
#include "model/transformer.h"
#include "serve/local/batch_engine.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {
namespace {

using model::failure_of;
using model::lively_weights;
using model::ModelConfig;
using model::ScratchFolder;

/// Dimensions that are no multiples of a panel, and of a group's 32 where weights are quantised.
ModelConfig small_config(const std::string& model_type, bool grouped = false) {
  ModelConfig config = model::tiny_config(model_type, model_type == "qwen3");
  config.max_position_embeddings = 320;
  config.num_attention_heads = 6;
  if (grouped) {
    config.hidden_size = 64;
    config.intermediate_size = 96;
    config.num_attention_heads = 4;
    config.head_dim = 16;
  }
  return config;
}

struct SavedSmall {
  /// scale: of all weights but norms.
  SavedSmall(const ModelConfig& c, c10::ScalarType dtype, double scale = 1)
      : config(c), flat(scaled(c, lively_weights(c, 3), scale).to(dtype).to(at::kFloat)) {
    save_model_folder(folder.path(), config, flat, dtype, {});
  }
  static Tensor scaled(const ModelConfig& of, Tensor weights, double by) {
    int64_t begin = 0;
    for (const model::ParameterSpec& spec : parameter_specs(of)) {
      if (!spec.name.ends_with("norm.weight")) weights.narrow(0, begin, spec.num_values()).mul_(by);
      begin += spec.num_values();
    }
    return weights;
  }
  /// Logits of every position, f32 [T,V], by the trainer's transformer in f32.
  std::vector<float> trainer_logits(const std::vector<int32_t>& tokens) const {
    const model::Parameters parameters(config, flat.clone());
    const model::Transformer transformer(config, parameters);
    std::vector<float> logits;
    model::KvCache cache(config, 1, at::kCPU, at::kFloat);
    for (const int32_t token : tokens) {
      const Tensor row = transformer.next_logits(at::full({1, 1}, token, at::kLong), cache);
      logits.insert(logits.end(), row.data_ptr<float>(), row.data_ptr<float>() + row.numel());
    }
    return logits;
  }

  ScratchFolder folder;
  ModelConfig config;
  Tensor flat;
};

std::vector<int32_t> some_tokens(const ModelConfig& config, size_t num_tokens, Rng rng) {
  std::vector<int32_t> tokens(num_tokens);
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(config.vocab_size)));
  }
  return tokens;
}

/// Largest difference over the largest magnitude wanted.
double distance_of(std::span<const float> actual, std::span<const float> wanted) {
  REQUIRE(actual.size() == wanted.size());
  double difference = 0, largest = 1e-30;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(actual[i])) return INFINITY;
    difference = std::max(difference, std::abs(double{actual[i]} - double{wanted[i]}));
    largest = std::max(largest, std::abs(double{wanted[i]}));
  }
  return difference / largest;
}

/// Feeds some sequences in random chunks, side by side, through pages in random places. Returns
/// each one's logits of every position.
std::vector<std::vector<float>> run_in_chunks(ModelRunner& runner,
                                              const std::vector<std::vector<int32_t>>& sequences,
                                              Rng rng) {
  std::vector<int32_t> free_pages(static_cast<size_t>(runner.num_pages()));
  std::iota(free_pages.begin(), free_pages.end(), 0);
  const size_t count = sequences.size();
  std::vector<std::vector<int32_t>> pages(count);
  std::vector<std::vector<float>> logits(count);
  std::vector<size_t> num_read(count, 0);
  const auto page_tokens = static_cast<size_t>(runner.page_tokens());
  while (true) {
    std::vector<SequenceChunk> chunks;
    std::vector<size_t> owners;
    size_t room = static_cast<size_t>(runner.max_batch_tokens());
    for (size_t i = 0; i < count; ++i) {
      const size_t left = sequences[i].size() - num_read[i];
      if (left == 0 || room == 0 || (rng.next_below(4) == 0 && !chunks.empty())) continue;
      const size_t most = rng.next_below(3) == 0 ? 1 : 70;
      const size_t take = std::min({left, room, size_t{1} + rng.next_below(most)});
      while (pages[i].size() * page_tokens < num_read[i] + take) {
        const size_t pick = rng.next_below(free_pages.size());
        std::swap(free_pages[pick], free_pages.back());
        pages[i].push_back(free_pages.back());
        free_pages.pop_back();
      }
      chunks.push_back({.tokens = std::span(sequences[i]).subspan(num_read[i], take),
                        .first_position = static_cast<int64_t>(num_read[i]),
                        .pages = pages[i],
                        .wanted = Wanted::kAllLogits});
      owners.push_back(i);
      room -= take;
    }
    if (chunks.empty()) return logits;
    const RunnerOutput output = runner.forward(chunks);
    size_t at = 0;
    for (size_t c = 0; c < chunks.size(); ++c) {
      const size_t values = chunks[c].tokens.size() * static_cast<size_t>(runner.vocab_size());
      logits[owners[c]].insert(logits[owners[c]].end(),
                               output.logits.begin() + static_cast<std::ptrdiff_t>(at),
                               output.logits.begin() + static_cast<std::ptrdiff_t>(at + values));
      at += values;
      num_read[owners[c]] += chunks[c].tokens.size();
    }
  }
}

std::vector<std::vector<int32_t>> three_sequences(const ModelConfig& config) {
  return {some_tokens(config, 170, Rng(1)),
          some_tokens(config, 33, Rng(2)),
          some_tokens(config, 5, Rng(3))};
}

double worst_distance(const SavedSmall& saved, const RunnerOptions& options) {
  const auto runner = open_cpu_runner(saved.folder.path(), options);
  const auto sequences = three_sequences(saved.config);
  const auto logits = run_in_chunks(*runner, sequences, Rng(7));
  double worst = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    worst = std::max(worst, distance_of(logits[i], saved.trainer_logits(sequences[i])));
  }
  return worst;
}

TEST_CASE("in f32 the runner's logits are the trainer's, whatever the chunks and pages") {
  for (const char* model_type : {"llama", "qwen2", "qwen3"}) {
    CAPTURE(model_type);
    const SavedSmall saved(small_config(model_type), at::kFloat);
    // f32 keeps 24 bits and sums run in another order.
    CHECK(worst_distance(saved,
                         {.kv = KvDtype::kF32,
                          .page_tokens = 16,
                          .num_pages = 20,
                          .max_batch_tokens = 90,
                          .num_threads = 2}) < 2e-5);
  }
}

TEST_CASE("in bf16 the runner's logits are close to the trainer's on the same weights") {
  const SavedSmall saved(small_config("qwen3"), at::kBFloat16);
  // The trainer computes in f32. Products round their inputs to 8 bits, each off by 2^-9 at most.
  CHECK(worst_distance(saved, {.num_pages = 12, .num_threads = 2}) < 1.5e-2);
}

TEST_CASE("opening a model leaves the thread that opens it all of its cores") {
  // Or the model that is opened next, a drafter or a new checkpoint, computes on one core alone.
  const SavedSmall saved(small_config("llama"), at::kBFloat16);
  const std::vector<int> all = allowed_cores();
  const RunnerOptions options = {.num_threads = static_cast<int>(all.size()), .cores = all};
  const auto runner = open_cpu_runner(saved.folder.path(), options);
  CHECK(allowed_cores() == all);
  std::filesystem::remove(saved.folder.path() / "model.safetensors");
  CHECK_FALSE(failure_of([&] { open_cpu_runner(saved.folder.path(), options); }).empty());
  CHECK(allowed_cores() == all);
}

TEST_CASE("keys and values of 8 bits cost little") {
  const SavedSmall saved(small_config("llama"), at::kFloat);
  CHECK(worst_distance(saved, {.kv = KvDtype::kInt8, .num_pages = 12}) < 3e-2);
}

// ---- Token by token through the engine ----

struct Answered {
  std::vector<int32_t> tokens;  // the prompt, then what was drawn
  size_t num_prompt = 0;
  std::vector<TokenLogprob> logprobs;  // of what was drawn; top: of the whole vocabulary
  bool is_over = false;
};

/// Requests that begin alike or do not come at random moments, some are cancelled, and there are
/// pages for a few of them only.
std::vector<Answered> answer_at_random(BatchEngine& engine, const ModelConfig& config, Rng rng) {
  constexpr size_t kRequests = 24;
  const std::vector<int32_t> shared = some_tokens(config, 40, rng.fork("shared"));
  std::vector<Answered> answered(kRequests);
  for (size_t num_begun = 0; true;) {
    if (num_begun < kRequests && rng.next_below(2) == 0) {
      Answered& one = answered[num_begun];
      const size_t num_shared = rng.next_below(2) * (1 + rng.next_below(shared.size()));
      one.tokens.assign(shared.begin(), shared.begin() + static_cast<std::ptrdiff_t>(num_shared));
      const auto own = some_tokens(config, 1 + rng.next_below(50), rng.fork("own", num_begun));
      one.tokens.insert(one.tokens.end(), own.begin(), own.end());
      one.num_prompt = one.tokens.size();
      GenerateRequest request;
      request.prompt = one.tokens;
      request.max_new_tokens = static_cast<int64_t>(1 + rng.next_below(28));
      request.num_logprobs = static_cast<int>(config.vocab_size);
      request.ignore_end = true;
      engine.submit(num_begun++, std::move(request), [&one](const Piece& piece) {
        one.tokens.insert(one.tokens.end(), piece.tokens.begin(), piece.tokens.end());
        one.logprobs.insert(one.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
        one.is_over = piece.is_last;
      });
    }
    if (num_begun > 0 && rng.next_below(25) == 0) engine.cancel(rng.next_below(num_begun));
    if (!engine.step() && num_begun == kRequests) return answered;
  }
}

/// Of some tokens' log probabilities, each token's largest difference over its largest logit.
struct Distances {
  double worst = 0, sum = 0;
  int64_t num_tokens = 0;
  void add(const Answered& answered, const model::PlainTransformer& plain) {
    const auto wanted = plain.logits({answered.tokens.begin(), answered.tokens.end()});
    for (size_t i = 0; i < answered.logprobs.size(); ++i) {
      const auto& row = wanted[answered.num_prompt + i - 1];
      double largest = 0, difference = 0;
      for (const double logit : row) largest = std::max(largest, std::abs(logit));
      REQUIRE(answered.logprobs[i].top.size() == row.size());
      for (const auto& [token, logprob] : answered.logprobs[i].top) {
        const double exact = -model::PlainTransformer::loss(row, token);
        difference = std::max(difference, std::abs(exact - double{logprob}));
      }
      worst = std::max(worst, difference / largest);
      sum += difference / largest;
      ++num_tokens;
    }
  }
  double mean() const { return sum / static_cast<double>(num_tokens); }
};

struct Computed {
  c10::ScalarType dtype;
  KvDtype kv;
  model::PlainRounding rounding;
  double scale;  // of weights
};

/// seen: what happened to the requests of all runs together.
Distances distances_through_engine(const ModelConfig& config,
                                   const Computed& computed,
                                   uint64_t seed,
                                   EngineStats& seen) {
  const SavedSmall saved(config, computed.dtype, computed.scale);
  const model::PlainTransformer plain(saved.config, saved.flat, computed.rounding);
  const auto runner = open_cpu_runner(
      saved.folder.path(),
      {.kv = computed.kv, .page_tokens = 16, .num_pages = 11, .max_batch_tokens = 90});
  data::TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) spec.token_bytes.emplace_back(1, static_cast<char>(byte));
  const auto tokenizer = data::Tokenizer::from_spec(std::move(spec));
  BatchEngine engine(*runner,
                     tokenizer,
                     {.scheduler = {.step_tokens = 48, .sequences_max = 8},
                      .speculation = {.draft_max = 3, .rows_max = 8},
                      .seed = seed});
  Distances distances;
  for (const Answered& one : answer_at_random(engine, saved.config, Rng(seed))) {
    CHECK(one.is_over);
    distances.add(one, plain);
  }
  const EngineStats stats = engine.stats();
  CHECK(stats.num_pages_used == 0);
  seen.num_preempted += stats.num_preempted;
  seen.num_cancelled += stats.num_cancelled;
  seen.cached_tokens += stats.cached_tokens;
  return distances;
}

TEST_CASE("token by token the engine's logits are the model's, whoever shares, waits or leaves") {
  using model::PlainRounding;
  EngineStats seen;
  uint64_t seed = 0;
  for (const char* model_type : {"llama", "qwen3"}) {
    ++seed;
    CAPTURE(model_type);
    const ModelConfig config = small_config(model_type, true);
    const Computed exact{at::kFloat, KvDtype::kF32, PlainRounding::kNone, 1.0};
    CHECK(distances_through_engine(config, exact, seed, seen).worst < 2e-5);
    // Weights the same, inputs of products rounded at the same places. What is left is the order of
    // sums, which now and then moves a number over the border between two of bf16, 2^-8 apart, and
    // the tokens after it read that. A wrong page or position is worth more than 1e-1.
    const Computed narrow{at::kBFloat16, KvDtype::kBf16, PlainRounding::kBf16, 0.5};
    const Distances of_bf16 = distances_through_engine(config, narrow, seed, seen);
    CHECK(of_bf16.mean() < 1e-3);
    CHECK(of_bf16.worst < 2e-2);
    const Computed narrower{at::kBFloat16, KvDtype::kInt8, PlainRounding::kInt8Cache, 0.5};
    const Distances of_int8 = distances_through_engine(config, narrower, seed, seen);
    CHECK(of_int8.mean() < 8e-3);
    CHECK(of_int8.worst < 4e-2);
  }
  CHECK(seen.num_preempted > 0);
  CHECK(seen.num_cancelled > 0);
  CHECK(seen.cached_tokens > 0);
}

}  // namespace
}  // namespace pelago::serve
