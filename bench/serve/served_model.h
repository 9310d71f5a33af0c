// What the benchmarks of serving share: a model of TinyLlama's shape with random weights, made
// once, and the machine's own limits, measured beside what is compared with them.
#pragma once

#include <chrono>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/rng.h"
#include "base/threads.h"
#include "chips/packed/packed_matrix.h"
#include "chips/torch.h"
#include "model/transformer.h"
#include "serve/runner/model_runner.h"

namespace pelago::bench {

inline double seconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

/// 1.1e9 parameters in bf16 under the folder for temporary files; speed needs no trained weights.
inline std::filesystem::path served_folder(const std::string& preset) {
  const auto folder = std::filesystem::temp_directory_path() / "pelago-bench" / preset;
  if (std::filesystem::exists(folder / "config.json")) return folder;
  std::fprintf(stderr, "making %s once\n", folder.c_str());
  PendingFolder pending(folder);
  const model::ModelConfig config = model::preset(preset);
  at::manual_seed(1);
  const Tensor flat = at::empty({config.num_parameters()}, at::kFloat).normal_(0, 0.02);
  model::save_model_folder(pending.path(), config, flat, at::kBFloat16, {});
  pending.commit();
  return folder;
}

/// The runner's options on every core, bound.
inline serve::RunnerOptions bound_options(serve::WeightDtype weights) {
  serve::RunnerOptions options;
  options.weights = weights;
  options.group_size = 128;
  options.cores = allowed_cores();
  options.num_threads = static_cast<int>(options.cores.size());
  return options;
}

/// Reads memory far larger than any cache on all cores at once.
class MemoryMeter {
 public:
  explicit MemoryMeter(chips::packed::CoreTeam& team)
      : team_(&team), memory_(size_t{512} << 20), sums_(static_cast<size_t>(team.num_threads())) {
    std::memset(memory_.data(), 1, memory_.num_bytes());
  }
  /// One pass; bytes a second.
  double measure() {
    const double begin = seconds_now();
    team_->run([this](chips::packed::CoreTeam::Member& member) {
      member.share(memory_.num_bytes() >> 16, 4, [&](size_t first, size_t last) {
        sums_[static_cast<size_t>(member.thread_idx())] += sum_of(first << 16, last << 16);
      });
    });
    return static_cast<double>(memory_.num_bytes()) / (seconds_now() - begin);
  }

 private:
  uint64_t sum_of(size_t begin, size_t end) const {
    typedef uint64_t Lanes __attribute__((vector_size(16)));
    Lanes sums[8] = {};
    const auto* from = reinterpret_cast<const Lanes*>(memory_.data() + begin);
    const auto* const last = reinterpret_cast<const Lanes*>(memory_.data() + end);
    for (; from < last; from += 8) {
      for (size_t i = 0; i < 8; ++i) sums[i] += from[i];
    }
    for (size_t i = 1; i < 8; ++i) sums[0] += sums[i];
    return sums[0][0] + sums[0][1];
  }

  chips::packed::CoreTeam* team_;  // outlives me
  chips::packed::LargeMemory memory_;
  std::vector<uint64_t> sums_;
};

/// Some sequences side by side that are being generated, each with pages of its own.
class Generation {
 public:
  Generation(serve::ModelRunner& runner, size_t num_sequences) : runner_(&runner) {
    const auto pages_each = static_cast<size_t>(runner.num_pages()) / num_sequences;
    for (size_t i = 0; i < num_sequences; ++i) {
      std::vector<int32_t> pages(pages_each);
      std::iota(pages.begin(), pages.end(), static_cast<int32_t>(i * pages_each));
      pages_.push_back(pages);
    }
  }
  /// Reads a prompt of so many random tokens into each sequence.
  void read_prompts(size_t num_tokens) {
    Rng rng(3);
    std::vector<int32_t> tokens(num_tokens);
    for (const std::vector<int32_t>& pages : pages_) {
      for (int32_t& token : tokens) token = static_cast<int32_t>(rng.next_below(30000));
      const serve::SequenceChunk chunk{.tokens = tokens, .pages = pages};
      runner_->forward({&chunk, 1});
    }
    position_ = static_cast<int64_t>(num_tokens);
  }
  /// One token of each sequence, the likeliest each time.
  void step() {
    next_.resize(pages_.size(), 1);
    std::vector<serve::SequenceChunk> chunks;
    for (size_t i = 0; i < pages_.size(); ++i) {
      chunks.push_back({.tokens = {&next_[i], 1}, .first_position = position_, .pages = pages_[i]});
    }
    const std::span<const float> logits = runner_->forward(chunks).logits;
    const auto vocabulary = static_cast<size_t>(runner_->vocab_size());
    for (size_t i = 0; i < pages_.size(); ++i) {
      const auto row = logits.subspan(i * vocabulary, vocabulary);
      next_[i] = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
    }
    ++position_;
  }

 private:
  serve::ModelRunner* runner_;  // outlives me
  std::vector<std::vector<int32_t>> pages_;
  std::vector<int32_t> next_;
  int64_t position_ = 0;
};

}  // namespace pelago::bench
