#include "serve/runner/transformer_runner.h"

#include <algorithm>

#include "base/error.h"
#include "chips/device.h"
#include "chips/torch.h"
#include "model/layers/block.h"
#include "model/transformer.h"

namespace pelago::serve {

namespace {

c10::ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "f32") return at::kFloat;
  if (dtype == "bf16") return at::kBFloat16;
  if (dtype == "f16") return at::kHalf;
  fail_usage("dtype {}: must be f32, bf16 or f16", dtype);
}

class TransformerRunner final : public ModelRunner {
 public:
  TransformerRunner(const model::ModelConfig& config,
                    const Tensor& flat,
                    const TransformerRunnerOptions& options)
      : config_(config),
        options_(options),
        device_(chips::open_device(options.device, catalogue_)),
        parameters_(config, (check_memory(flat), on_device(flat))),
        rope_(config, device_->torch_device()) {
    const torch::NoGradGuard no_grad;
    // Each layer's keys, then its values: [P,L,2,S,K,E], so that a page is one run of memory.
    pages_ = at::zeros({options.num_pages,
                        config.num_hidden_layers,
                        2,
                        options.page_tokens,
                        config.num_key_value_heads,
                        config.head_dim},
                       parameters_.flat().options());
  }

  RunnerOutput forward(std::span<const SequenceChunk> chunks) override {
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> logits, hidden_states;
    for (const SequenceChunk& chunk : chunks) {
      const Tensor hidden = run(chunk);  // [n,D]
      if (chunk.wanted == Wanted::kHiddenStates) hidden_states.push_back(hidden);
      if (chunk.wanted == Wanted::kAllLogits) logits.push_back(hidden);
      if (chunk.wanted == Wanted::kLastLogits) logits.push_back(hidden.narrow(0, -1, 1));
    }
    RunnerOutput output;
    if (!logits.empty()) {
      const Tensor rows = at::cat(logits);
      logits_ = at::mm(rows, parameters_.head().t()).to(at::kCPU, at::kFloat).contiguous();
      output.logits = {logits_.data_ptr<float>(), static_cast<size_t>(logits_.numel())};
    }
    if (!hidden_states.empty()) {
      hidden_states_ = at::cat(hidden_states).to(at::kCPU, at::kFloat).contiguous();
      output.hidden_states = {hidden_states_.data_ptr<float>(),
                              static_cast<size_t>(hidden_states_.numel())};
    }
    return output;
  }

  void copy_page(int32_t from, int32_t to) override {
    const torch::NoGradGuard no_grad;
    pages_.select(0, to).copy_(pages_.select(0, from));
  }

  std::span<std::byte> page(int32_t page_idx) override {
    PELAGO_ASSERT(pages_.is_cpu(), "only pages in host memory can be looked at");
    const Tensor one = pages_.select(0, page_idx);
    return {static_cast<std::byte*>(one.data_ptr()), static_cast<size_t>(bytes_per_page())};
  }
  void read_layer(int32_t page_idx, int64_t layer_idx, std::span<std::byte> to) override {
    const torch::NoGradGuard no_grad;
    const Tensor piece = pages_.select(0, page_idx).select(0, layer_idx);  // [2,S,K,E]
    at::from_blob(to.data(), piece.sizes(), at::dtype(pages_.scalar_type())).copy_(piece);
  }
  void write_layer(int32_t page_idx, int64_t layer_idx, std::span<const std::byte> from) override {
    const torch::NoGradGuard no_grad;
    const Tensor piece = pages_.select(0, page_idx).select(0, layer_idx);  // [2,S,K,E]
    // from_blob takes memory that may be written to, which nobody does here.
    piece.copy_(at::from_blob(
        const_cast<std::byte*>(from.data()), piece.sizes(), at::dtype(pages_.scalar_type())));
  }
  int64_t num_layers() const override { return config_.num_hidden_layers; }

  int64_t num_pages() const override { return options_.num_pages; }
  int64_t page_tokens() const override { return options_.page_tokens; }
  int64_t bytes_per_page() const override { return pages_.stride(0) * pages_.element_size(); }
  int64_t vocab_size() const override { return config_.vocab_size; }
  int64_t hidden_size() const override { return config_.hidden_size; }
  int64_t context_length() const override { return config_.max_position_embeddings; }
  int64_t max_batch_tokens() const override { return options_.max_batch_tokens; }
  int64_t weight_bytes() const override {
    return parameters_.flat().numel() * parameters_.flat().element_size();
  }

 private:
  Tensor on_device(const Tensor& flat) const {
    return flat.to(device_->torch_device(), scalar_type(options_.dtype));
  }
  /// Said before the weights are on their way: running out half-way names neither model nor remedy.
  void check_memory(const Tensor& flat) const {
    const auto memory = static_cast<double>(device_->memory_bytes());
    const auto value_bytes = static_cast<double>(c10::elementSize(scalar_type(options_.dtype)));
    const double weights = value_bytes * static_cast<double>(flat.numel());
    const double pages =
        value_bytes * 2 *
        static_cast<double>(options_.num_pages * options_.page_tokens * config_.num_hidden_layers *
                            config_.num_key_value_heads * config_.head_dim);
    if (memory <= 0 || weights + pages <= memory) return;
    fail_usage(
        "device {}: {:.3g} GB of weights and {:.3g} GB for keys and values do not fit into its "
        "{:.3g} GB: give less --kv-memory-gb, or take a larger chip",
        options_.device,
        weights / 1e9,
        pages / 1e9,
        memory / 1e9);
  }

  Tensor page_indices(std::span<const int32_t> pages, int64_t num_tokens) const {
    const int64_t count = (num_tokens + options_.page_tokens - 1) / options_.page_tokens;
    const Tensor host = at::empty({count}, at::kLong);
    std::copy_n(pages.begin(), count, host.data_ptr<int64_t>());
    return host.to(pages_.device());
  }

  /// Keys (0) or values (1) of a layer at positions [0, num_tokens): [1,T,K,E].
  Tensor gather(const Tensor& indices, int64_t layer_idx, int64_t part, int64_t num_tokens) const {
    const Tensor kept = pages_.select(1, layer_idx).select(1, part);  // [P,S,K,E]
    return kept.index_select(0, indices).flatten(0, 1).narrow(0, 0, num_tokens).unsqueeze(0);
  }

  Tensor run(const SequenceChunk& chunk) {
    const int64_t first = chunk.first_position;
    const auto num_new = static_cast<int64_t>(chunk.tokens.size());
    model::KvCache cache(config_, /*batch=*/1, pages_.device(), pages_.scalar_type());
    if (first > 0) {
      const Tensor indices = page_indices(chunk.pages, first);
      for (int64_t layer_idx = 0; layer_idx < config_.num_hidden_layers; ++layer_idx) {
        cache.append(
            layer_idx, gather(indices, layer_idx, 0, first), gather(indices, layer_idx, 1, first));
      }
      cache.advance(first);
    }
    const Tensor host = at::empty({num_new}, at::kLong);
    std::ranges::copy(chunk.tokens, host.data_ptr<int64_t>());
    const model::RopeTable::Rows rope = rope_.rows(first, num_new);
    model::BlockState state{.fed = parameters_.embed(host.to(pages_.device())), .stream = {}};
    for (int64_t layer_idx = 0; layer_idx < config_.num_hidden_layers; ++layer_idx) {
      state = model::run_block(config_,
                               parameters_.blocks()[static_cast<size_t>(layer_idx)],
                               state,
                               {.rope = rope, .cache = &cache, .layer_idx = layer_idx});
    }
    cache.advance(num_new);
    keep(chunk, cache);
    return model::final_norm(config_, parameters_.final_norm(), state);
  }

  /// Writes the chunk's keys and values into its pages.
  void keep(const SequenceChunk& chunk, model::KvCache& cache) {
    const Tensor none =
        at::empty({1, 0, config_.num_key_value_heads, config_.head_dim}, pages_.options());
    const int64_t end = chunk.first_position + static_cast<int64_t>(chunk.tokens.size());
    for (int64_t layer_idx = 0; layer_idx < config_.num_hidden_layers; ++layer_idx) {
      const model::KvCache::KeysValues all = cache.append(layer_idx, none, none);
      for (int64_t begin = chunk.first_position; begin < end;) {
        const int64_t offset = begin % options_.page_tokens;
        const int64_t count = std::min(end - begin, options_.page_tokens - offset);
        const int32_t page_idx = chunk.pages[static_cast<size_t>(begin / options_.page_tokens)];
        const Tensor page = pages_.select(0, page_idx).select(0, layer_idx);  // [2,S,K,E]
        page.select(0, 0).narrow(0, offset, count).copy_(all.keys[0].narrow(0, begin, count));
        page.select(0, 1).narrow(0, offset, count).copy_(all.values[0].narrow(0, begin, count));
        begin += count;
      }
    }
  }

  const model::ModelConfig config_;
  const TransformerRunnerOptions options_;
  const chips::Catalogue catalogue_ = chips::Catalogue::built_in();
  const std::unique_ptr<chips::Device> device_;
  const model::Parameters parameters_;
  model::RopeTable rope_;
  Tensor pages_;
  Tensor logits_, hidden_states_;  // of the last pass
};

}  // namespace

std::unique_ptr<ModelRunner> open_transformer_runner(const std::filesystem::path& folder,
                                                     const TransformerRunnerOptions& options) {
  const model::LoadedModel loaded = model::load_model_folder(folder);
  return std::make_unique<TransformerRunner>(loaded.config, loaded.flat, options);
}

}  // namespace pelago::serve
