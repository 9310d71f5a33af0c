// The model as the engine sees it: tokens of many sequences in, logits out, keys and values in
// pages that the engine hands out. One forward pass takes any mixture of chunks: whole prompts,
// parts of prompts, single tokens of sequences that are being generated, several tokens that a
// draft guessed. What comes out for a position does not depend on how the sequence was cut into
// chunks or where its pages lie, but for the rounding of sums.
//
// The engine owns the pages' bookkeeping (who holds which, copies on write, the prefix cache); the
// runner owns their memory. A page holds page_tokens() positions of all layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace pelago::serve {

/// What a chunk's answer is.
enum class Wanted : uint8_t {
  kNothing,      // its keys and values only: a part of a prompt
  kLastLogits,   // one row: what follows its last token
  kAllLogits,    // a row a token: to check a draft
  kHiddenStates  // a row a token behind the last norm: embeddings
};

/// Some tokens of one sequence, in the order of their positions.
struct SequenceChunk {
  std::span<const int32_t> tokens;  // [n], n >= 1, each in [0, vocab_size)
  int64_t first_position = 0;       // of tokens[0]; what lies before it is in the pages
  /// The sequence's pages from position 0 on: page i holds positions [i, i + 1) * page_tokens(). At
  /// least as many as the chunk's last position needs. Pages written to (those of the chunk's own
  /// positions) belong to this chunk alone; pages only read may be shared by sequences. A page is
  /// begun at its first position.
  std::span<const int32_t> pages;
  Wanted wanted = Wanted::kLastLogits;
};

/// Valid until the next call of the runner. Rows in the order of the chunks that want them.
struct RunnerOutput {
  std::span<const float> logits;         // [rows of kLastLogits and kAllLogits, V]
  std::span<const float> hidden_states;  // [rows of kHiddenStates, D]
};

/// Not for several threads at once. All sizes are those of the open model.
class ModelRunner {
 public:
  ModelRunner() = default;
  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;
  virtual ~ModelRunner() = default;

  /// Reads the chunks and fills their pages. Two chunks of one pass never are of one sequence.
  /// Tokens of all chunks together: at most max_batch_tokens(). What the engine gets wrong is our
  /// bug and aborts.
  virtual RunnerOutput forward(std::span<const SequenceChunk> chunks) = 0;

  /// Copies all layers of a page: copy on write.
  virtual void copy_page(int32_t from, int32_t to) = 0;
  /// A page's bytes, to hand it to another process whose runner is of this kind and has the same
  /// model, kv dtype and page_tokens(). Writing them makes the page what it was there. Lives as
  /// long as the runner. Of a runner on processors; read_layer() and write_layer() are of any.
  virtual std::span<std::byte> page(int32_t page_idx) = 0;

  /// A page's bytes are so many pieces of one length, one a layer, in their order.
  virtual int64_t num_layers() const { return 1; }
  /// One of those pieces out of the runner's memory and into it, wherever that lies. Any thread, as
  /// long as no pass uses the page.
  virtual void read_layer(int32_t page_idx, int64_t layer_idx, std::span<std::byte> to) {
    std::memcpy(to.data(), page(page_idx).data() + layer_begin(layer_idx), to.size());
  }
  virtual void write_layer(int32_t page_idx, int64_t layer_idx, std::span<const std::byte> from) {
    std::memcpy(page(page_idx).data() + layer_begin(layer_idx), from.data(), from.size());
  }
  /// Called by forward(), on its thread, as soon as the keys and values of this pass lie in the
  /// pages for a layer: 0, 1, 2... A runner that cannot tell calls nobody; after forward() all are
  /// there.
  using LayerWatch = std::function<void(int64_t layer_idx)>;
  void watch_layers(LayerWatch watch) { layer_watch_ = std::move(watch); }

  virtual int64_t num_pages() const = 0;
  virtual int64_t page_tokens() const = 0;
  virtual int64_t bytes_per_page() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual int64_t hidden_size() const = 0;
  virtual int64_t context_length() const = 0;  // positions that the model was made for
  virtual int64_t max_batch_tokens() const = 0;
  /// Bytes of weights that a pass over one token reads.
  virtual int64_t weight_bytes() const = 0;

 protected:
  size_t layer_begin(int64_t layer_idx) const {
    return static_cast<size_t>(bytes_per_page() / num_layers() * layer_idx);
  }

  LayerWatch layer_watch_;  // empty: nobody watches
};

enum class WeightDtype : uint8_t {
  kAsStored,  // f32 stays f32, bf16 and f16 become bf16, int8 and int4 stay
  kF32,
  kBf16,
  kInt8,  // the rest round to nearest when the model is opened
  kInt4
};

enum class KvDtype : uint8_t { kF32, kBf16, kInt8 };

struct RunnerOptions {
  WeightDtype weights = WeightDtype::kAsStored;
  int64_t group_size = 64;         // values a scale, if the weights are quantised here
  KvDtype kv = KvDtype::kBf16;     // int8 halves a page and costs about 0.1 % of loss
  int64_t page_tokens = 32;        // a multiple of 16
  int64_t num_pages = 256;         // their memory is taken when they are first written
  int64_t max_batch_tokens = 512;  // of a pass: sizes the buffers
  /// Threads of a pass, the caller's among them. With cores, thread i is bound to cores[i], and the
  /// thread that calls forward() to cores[0] from its first call on; who opens keeps its cores.
  int num_threads = 1;
  std::vector<int> cores = {};
  /// A file in memory where processes share one packed copy of the weights (shared_weights.h), and
  /// what tells these weights from others; empty: a copy of this process alone.
  std::string shared_weights = {};
  uint64_t weights_key = 0;

  /// Throws Failure (exit 2) naming field, value and what is allowed.
  void validate() const;
};

/// A runner on this machine's processors. folder: config.json and safetensors of f32, f16, bf16, or
/// what `pelago compress quantize` writes. Throws Failure naming file, tensor or option.
std::unique_ptr<ModelRunner> open_cpu_runner(const std::filesystem::path& folder,
                                             const RunnerOptions& options);

}  // namespace pelago::serve
