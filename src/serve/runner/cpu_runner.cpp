// The runner on processors: one pass is one run of a team of threads, which share each product's
// panels and each row's steps, and meet some nine times a layer. The residual stream and everything
// between products is f32; products take bf16, or levels with their scales.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "chips/packed/paged_attention.h"
#include "chips/packed/rows.h"
#include "chips/torch.h"
#include "model/layers/rope.h"
#include "serve/runner/model_runner.h"
#include "serve/runner/packed_weights.h"

namespace pelago::serve {

namespace {

namespace packed = chips::packed;
using packed::CoreTeam;

/// Columns rounded up to whole panels, and 16 more: rows a power of two apart would all want the
/// same lines of the first cache.
size_t stride_of(int64_t num_columns) {
  return (static_cast<size_t>(num_columns) + 15) / 16 * 16 + 16;
}

packed::PageFormat page_format(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kF32:
      return packed::PageFormat::kF32;
    case KvDtype::kInt8:
      return packed::PageFormat::kInt8;
    default:
      return packed::PageFormat::kBf16;
  }
}

/// A row of a pass: a token, and whose.
struct Row {
  size_t chunk_idx;
  size_t position;
};

class CpuRunner final : public ModelRunner {
 public:
  CpuRunner(const std::filesystem::path& folder, const RunnerOptions& options)
      : options_(options),
        team_(options.num_threads, options.cores),
        weights_(pack_weights(folder, options, team_)),
        config_(weights_.config),
        layout_{.format = page_format(options.kv),
                .page_tokens = static_cast<size_t>(options.page_tokens),
                .num_layers = static_cast<size_t>(config_.num_hidden_layers),
                .key_heads = static_cast<size_t>(config_.num_key_value_heads),
                .head_dim = static_cast<size_t>(config_.head_dim)},
        pages_(layout_.page_bytes() * static_cast<size_t>(options.num_pages)),
        hidden_in_(rows_max(), static_cast<size_t>(config_.hidden_size)),
        mixed_in_(rows_max(), static_cast<size_t>(query_width())),
        fed_in_(rows_max(), static_cast<size_t>(config_.intermediate_size)),
        stream_(rows_max() * stream_stride()),
        qkv_(rows_max() * qkv_stride()),
        mixed_(rows_max() * mixed_stride()),
        fed_(rows_max() * fed_stride()),
        threads_(static_cast<size_t>(options.num_threads)) {
    make_rotations();
    for (ThreadScratch& scratch : threads_) {
      scratch.row.resize(static_cast<size_t>(inputs_max()) + 16);
      scratch.narrow.resize(static_cast<size_t>(inputs_max()) + 16);
    }
    // Who opens a model is seldom who runs it, and may open another, which wants all cores too.
    team_.release_caller();
  }

  RunnerOutput forward(std::span<const SequenceChunk> chunks) override;
  void copy_page(int32_t from, int32_t to) override {
    std::memcpy(page(to).data(), page(from).data(), layout_.page_bytes());
  }
  std::span<std::byte> page(int32_t page_idx) override {
    PELAGO_ASSERT(page_idx >= 0 && page_idx < options_.num_pages, "pages are those of the runner");
    return {pages_.data() + static_cast<size_t>(page_idx) * layout_.page_bytes(),
            layout_.page_bytes()};
  }
  int64_t num_layers() const override { return config_.num_hidden_layers; }
  int64_t num_pages() const override { return options_.num_pages; }
  int64_t page_tokens() const override { return options_.page_tokens; }
  int64_t bytes_per_page() const override { return static_cast<int64_t>(layout_.page_bytes()); }
  int64_t vocab_size() const override { return config_.vocab_size; }
  int64_t hidden_size() const override { return config_.hidden_size; }
  int64_t context_length() const override { return config_.max_position_embeddings; }
  int64_t max_batch_tokens() const override { return options_.max_batch_tokens; }
  int64_t weight_bytes() const override { return static_cast<int64_t>(weights_.num_bytes()); }

 private:
  struct ThreadScratch {
    std::vector<float> row;
    std::vector<uint16_t> narrow;
    packed::AttentionScratch attention;
  };
  using Member = CoreTeam::Member;

  size_t rows_max() const { return static_cast<size_t>(options_.max_batch_tokens); }
  int64_t query_width() const { return config_.num_attention_heads * config_.head_dim; }
  int64_t key_width() const { return config_.num_key_value_heads * config_.head_dim; }
  int64_t inputs_max() const {
    return std::max({config_.hidden_size, query_width(), config_.intermediate_size}) + 1;
  }
  size_t stream_stride() const { return stride_of(config_.hidden_size); }
  size_t qkv_stride() const { return stride_of(query_width() + 2 * key_width()); }
  size_t mixed_stride() const { return stride_of(query_width()); }
  size_t fed_stride() const { return stride_of(config_.intermediate_size); }

  void make_rotations();
  int32_t page_of(const Row& row) const {
    return chunks_[row.chunk_idx].pages[row.position / layout_.page_tokens];
  }
  void clear_page(const Row& row) {
    std::memset(page(page_of(row)).data(), 0, layout_.page_bytes());
  }
  void take(std::span<const SequenceChunk> chunks);
  void embed(Member& member);
  void put_normed(Member& member,
                  const std::vector<float>& norm,
                  std::span<const size_t> from_rows);
  void put_rows(Member& member,
                const std::vector<float>& from,
                size_t stride,
                packed::PackedRows& to);
  void rotate_and_keep(Member& member, const PackedLayer& layer, size_t layer_idx);
  void attend(Member& member, size_t layer_idx);
  void run_layer(Member& member, size_t layer_idx);
  void finish(Member& member);

  RunnerOptions options_;
  CoreTeam team_;
  PackedWeights weights_;
  const model::ModelConfig& config_;  // of weights_
  packed::PageLayout layout_;
  packed::LargeMemory pages_;
  std::vector<float> cos_, sin_;  // [context,E/2]
  // Of the pass that is on; rows are its tokens.
  std::span<const SequenceChunk> chunks_;
  std::vector<Row> row_infos_;
  std::vector<size_t> all_rows_, logit_rows_, hidden_rows_;
  packed::PackedRows hidden_in_, mixed_in_, fed_in_;  // what products take
  std::vector<float> stream_;                         // [rows,D]: the residual stream
  std::vector<float> qkv_;                            // [rows,(H+2K)*E]
  std::vector<float> mixed_;                          // [rows,H*E]
  std::vector<float> fed_;                            // [rows,F]
  std::vector<float> logits_, hidden_;
  /// Attention's pieces: some rows of one key head of one chunk.
  struct AttentionPiece {
    size_t chunk_idx, key_head, first_row, begin, end;
  };
  std::vector<AttentionPiece> pieces_;
  std::vector<ThreadScratch> threads_;
};

void CpuRunner::make_rotations() {
  model::RopeTable table(config_, at::kCPU);
  const auto rows = table.rows(0, config_.max_position_embeddings);
  const auto copy = [](const Tensor& from) {
    const float* data = from.data_ptr<float>();
    return std::vector<float>(data, data + from.numel());
  };
  cos_ = copy(rows.cos);
  sin_ = copy(rows.sin);
}

void CpuRunner::take(std::span<const SequenceChunk> chunks) {
  chunks_ = chunks;
  row_infos_.clear();
  all_rows_.clear();
  logit_rows_.clear();
  hidden_rows_.clear();
  pieces_.clear();
  const auto group = static_cast<size_t>(config_.num_attention_heads / config_.num_key_value_heads);
  for (size_t chunk_idx = 0; chunk_idx < chunks.size(); ++chunk_idx) {
    const SequenceChunk& chunk = chunks[chunk_idx];
    const size_t num_tokens = chunk.tokens.size();
    const auto first_position = static_cast<size_t>(chunk.first_position);
    PELAGO_ASSERT(num_tokens >= 1 && chunk.first_position >= 0 &&
                      first_position + num_tokens <= cos_.size() * 2 / layout_.head_dim,
                  "a chunk has tokens, within the model's context");
    PELAGO_ASSERT(chunk.pages.size() * layout_.page_tokens >= first_position + num_tokens,
                  "a chunk's pages reach its last position");
    const size_t first_row = row_infos_.size();
    for (size_t i = 0; i < num_tokens; ++i) {
      PELAGO_ASSERT(chunk.tokens[i] >= 0 && chunk.tokens[i] < config_.vocab_size,
                    "tokens are those of the vocabulary");
      const size_t row = row_infos_.size();
      if (chunk.wanted == Wanted::kAllLogits ||
          (chunk.wanted == Wanted::kLastLogits && i + 1 == num_tokens)) {
        logit_rows_.push_back(row);
      }
      if (chunk.wanted == Wanted::kHiddenStates) hidden_rows_.push_back(row);
      all_rows_.push_back(row);
      row_infos_.push_back({.chunk_idx = chunk_idx, .position = first_position + i});
    }
    const size_t rows_at_once = packed::attention_rows_max(layout_);
    for (size_t key_head = 0; key_head < layout_.key_heads; ++key_head) {
      for (size_t begin = 0; begin < num_tokens * group; begin += rows_at_once) {
        pieces_.push_back({chunk_idx,
                           key_head,
                           first_row,
                           begin,
                           std::min(num_tokens * group, begin + rows_at_once)});
      }
    }
  }
  PELAGO_ASSERT(!row_infos_.empty() && row_infos_.size() <= rows_max(),
                "a pass has tokens, at most as many as it was opened for");
  // Late rows see most keys: they come first, so that no thread is left with the longest piece.
  std::stable_sort(pieces_.begin(), pieces_.end(), [&](const auto& a, const auto& b) {
    const auto last = [&](const AttentionPiece& piece) {
      return chunks_[piece.chunk_idx].first_position +
             static_cast<int64_t>((piece.end - 1) / group);
    };
    return last(a) > last(b);
  });
  const PackedLayer& layer = weights_.layers.front();  // gate and up take what q, k and v take
  hidden_in_.begin(row_infos_.size(), layer.qkv);
  mixed_in_.begin(row_infos_.size(), layer.output);
  fed_in_.begin(row_infos_.size(), layer.down);
  logits_.resize(logit_rows_.size() * stride_of(config_.vocab_size));
  hidden_.resize(hidden_rows_.size() * static_cast<size_t>(config_.hidden_size));
}

void CpuRunner::embed(Member& member) {
  const auto width = static_cast<size_t>(config_.hidden_size);
  member.share(row_infos_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      const SequenceChunk& chunk = chunks_[row_infos_[row].chunk_idx];
      const size_t idx = row_infos_[row].position - static_cast<size_t>(chunk.first_position);
      const std::byte* from = weights_.embedding.data() + static_cast<size_t>(chunk.tokens[idx]) *
                                                              weights_.embedding_row_bytes();
      float* to = stream_.data() + row * stream_stride();
      // Here, as other threads will write to the page's other positions.
      if (row_infos_[row].position % layout_.page_tokens == 0) clear_page(row_infos_[row]);
      if (weights_.embedding_is_f32) {
        std::memcpy(to, from, width * sizeof(float));
      } else {
        packed::widen_bf16(reinterpret_cast<const uint16_t*>(from), width, to);
      }
    }
  });
}

void CpuRunner::put_normed(Member& member,
                           const std::vector<float>& norm,
                           std::span<const size_t> from_rows) {
  ThreadScratch& scratch = threads_[static_cast<size_t>(member.thread_idx())];
  member.share(from_rows.size(), 4, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      packed::rms_norm(stream_.data() + from_rows[row] * stream_stride(),
                       norm.data(),
                       norm.size(),
                       config_.rms_norm_eps,
                       scratch.row.data());
      hidden_in_.put(row, scratch.row.data(), scratch.narrow.data());
    }
  });
}

void CpuRunner::put_rows(Member& member,
                         const std::vector<float>& from,
                         size_t stride,
                         packed::PackedRows& to) {
  ThreadScratch& scratch = threads_[static_cast<size_t>(member.thread_idx())];
  member.share(row_infos_.size(), 4, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      to.put(row, from.data() + row * stride, scratch.narrow.data());
    }
  });
}

void CpuRunner::rotate_and_keep(Member& member, const PackedLayer& layer, size_t layer_idx) {
  const size_t head_dim = layout_.head_dim;
  const auto num_heads = static_cast<size_t>(config_.num_attention_heads);
  const size_t key_heads = layout_.key_heads;
  member.share(row_infos_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      const Row& info = row_infos_[row];
      float* heads = qkv_.data() + row * qkv_stride();
      if (!layer.qkv_bias.empty()) packed::add(layer.qkv_bias.data(), layer.qkv_bias.size(), heads);
      const float* cos = cos_.data() + info.position * head_dim / 2;
      const float* sin = sin_.data() + info.position * head_dim / 2;
      for (size_t head = 0; head < num_heads + key_heads; ++head) {
        float* values = heads + head * head_dim;
        const std::vector<float>& norm = head < num_heads ? layer.q_norm : layer.k_norm;
        if (!norm.empty()) {
          packed::rms_norm(values, norm.data(), head_dim, config_.rms_norm_eps, values);
        }
        packed::rotate(values, cos, sin, head_dim);
      }
      std::byte* page_data = page(page_of(info)).data();
      for (size_t head = 0; head < key_heads; ++head) {
        packed::put_key_value(layout_,
                              page_data + layout_.head_offset(layer_idx, head),
                              info.position,
                              heads + (num_heads + head) * head_dim,
                              heads + (num_heads + key_heads + head) * head_dim);
      }
    }
  });
}

void CpuRunner::attend(Member& member, size_t layer_idx) {
  ThreadScratch& scratch = threads_[static_cast<size_t>(member.thread_idx())];
  const auto group = static_cast<size_t>(config_.num_attention_heads / config_.num_key_value_heads);
  member.share(pieces_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const AttentionPiece& piece = pieces_[i];
      const SequenceChunk& chunk = chunks_[piece.chunk_idx];
      const size_t column = piece.key_head * group * layout_.head_dim;
      packed::attend_rows({.layout = &layout_,
                           .pages = chunk.pages,
                           .memory = pages_.data(),
                           .layer_idx = layer_idx,
                           .key_head = piece.key_head,
                           .group = group,
                           .first_position = static_cast<size_t>(chunk.first_position),
                           .queries = qkv_.data() + piece.first_row * qkv_stride() + column,
                           .query_stride = qkv_stride(),
                           .out = mixed_.data() + piece.first_row * mixed_stride() + column,
                           .out_stride = mixed_stride()},
                          piece.begin,
                          piece.end,
                          scratch.attention);
    }
  });
}

void CpuRunner::run_layer(Member& member, size_t layer_idx) {
  const PackedLayer& layer = weights_.layers[layer_idx];
  const bool is_last = layer_idx + 1 == weights_.layers.size();
  put_normed(member, layer.input_norm, all_rows_);
  packed::expect(member, layer.output);
  packed::multiply(member, hidden_in_, layer.qkv, qkv_.data(), qkv_stride(), false);
  rotate_and_keep(member, layer, layer_idx);
  attend(member, layer_idx);
  put_rows(member, mixed_, mixed_stride(), mixed_in_);
  packed::expect(member, layer.gate_up);
  packed::multiply(member, mixed_in_, layer.output, stream_.data(), stream_stride(), true);
  put_normed(member, layer.post_attention_norm, all_rows_);
  packed::expect(member, layer.down);
  packed::multiply_swiglu(member,
                          hidden_in_,
                          layer.gate_up,
                          fed_in_,
                          fed_.data(),
                          fed_stride(),
                          threads_[static_cast<size_t>(member.thread_idx())].narrow.data());
  packed::expect(member, is_last ? weights_.head : weights_.layers[layer_idx + 1].qkv);
  packed::multiply(member, fed_in_, layer.down, stream_.data(), stream_stride(), true);
}

void CpuRunner::finish(Member& member) {
  const auto width = static_cast<size_t>(config_.hidden_size);
  if (!hidden_rows_.empty()) {
    member.share(hidden_rows_.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        packed::rms_norm(stream_.data() + hidden_rows_[i] * stream_stride(),
                         weights_.final_norm.data(),
                         width,
                         config_.rms_norm_eps,
                         hidden_.data() + i * width);
      }
    });
  }
  if (logit_rows_.empty()) return;
  member.share(1, 1, [&](size_t, size_t) { hidden_in_.begin(logit_rows_.size(), weights_.head); });
  put_normed(member, weights_.final_norm, logit_rows_);
  packed::multiply(
      member, hidden_in_, weights_.head, logits_.data(), stride_of(config_.vocab_size), false);
}

RunnerOutput CpuRunner::forward(std::span<const SequenceChunk> chunks) {
  take(chunks);
  team_.run([this](Member& member) {
    embed(member);
    for (size_t layer_idx = 0; layer_idx < weights_.layers.size(); ++layer_idx) {
      run_layer(member, layer_idx);
      // Attention read what all threads had written, so the layer's pages are whole.
      if (layer_watch_ && member.thread_idx() == 0) layer_watch_(static_cast<int64_t>(layer_idx));
    }
    finish(member);
  });
  // Rows close up to [rows,V].
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  for (size_t row = 1; row < logit_rows_.size(); ++row) {
    std::memmove(logits_.data() + row * vocabulary,
                 logits_.data() + row * stride_of(config_.vocab_size),
                 vocabulary * sizeof(float));
  }
  return {.logits = {logits_.data(), logit_rows_.size() * vocabulary}, .hidden_states = hidden_};
}

}  // namespace

std::unique_ptr<ModelRunner> open_cpu_runner(const std::filesystem::path& folder,
                                             const RunnerOptions& options) {
  options.validate();
  return std::make_unique<CpuRunner>(folder, options);
}

}  // namespace pelago::serve
