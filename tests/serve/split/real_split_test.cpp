// A split of a real model: its keys and values, read on one runner, mean the same on another.
#include <doctest/doctest.h>

#include "model/model_support.h"
#include "model/transformer.h"
#include "serve/engine/fake_runner.h"
#include "serve/runner/transformer_runner.h"
#include "serve/split/loop_link.h"
#include "serve/split/prefill_side.h"
#include "serve/split/remote_reader.h"

namespace pelago::serve {
namespace {

/// The same prompt, answered by one runner and by one that another reads for.
void check_real_split(ModelRunner& alone_runner,
                      ModelRunner& decode_runner,
                      ModelRunner& prefill_runner) {
  const data::Tokenizer tokenizer = byte_tokenizer();
  const BatchOptions batch = {.scheduler = {.step_tokens = 64, .sequences_max = 4}};
  LoopWire wire(64 * 1024);
  PrefillSide prefill(prefill_runner, wire.end(1), {.step_tokens = 48});
  BatchEngine alone(alone_runner, tokenizer, batch), split(decode_runner, tokenizer, batch);
  split.read_with(std::make_unique<RemoteReader>(wire.end(0), RemoteOptions{}), [] {});
  GenerateRequest request;
  Rng rng(9);
  for (int idx = 0; idx < 150; ++idx) {
    request.prompt.push_back(
        static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(alone_runner.vocab_size()))));
  }
  request.max_new_tokens = 20;
  request.sampling.temperature = 0;
  request.sampling.seed = 1;
  request.ignore_end = true;
  const auto wanted = std::make_shared<Answer>(), got = std::make_shared<Answer>();
  alone.submit(1, request, collect(wanted));
  split.submit(1, request, collect(got));
  while (alone.step()) {
  }
  for (int round = 0; round < 1000 && !got->is_over; ++round) {
    wire.carry(1, 100);
    split.step();
    wire.carry(0, 100);
    prefill.step();
  }
  CHECK(prefill.stats().num_tokens_computed == 149);
  CHECK(split.stats().num_read_elsewhere == 1);
  CHECK(got->choices[0].tokens == wanted->choices[0].tokens);
  split.stop_reading();
}

TEST_CASE("a real model's keys and values mean the same on the other side") {
  model::ModelConfig config = model::tiny_config("llama", false);
  config.max_position_embeddings = 320;
  const model::ScratchFolder folder;
  save_model_folder(folder.path(), config, model::lively_weights(config, 3), at::kBFloat16, {});
  for (const KvDtype kv : {KvDtype::kBf16, KvDtype::kInt8}) {
    const RunnerOptions options = {
        .kv = kv, .page_tokens = 16, .num_pages = 60, .max_batch_tokens = 128};
    const auto open = [&] { return open_cpu_runner(folder.path(), options); };
    check_real_split(*open(), *open(), *open());
  }
  // What serves from an accelerator, here on the processors.
  const TransformerRunnerOptions options = {
      .dtype = "f32", .page_tokens = 16, .num_pages = 60, .max_batch_tokens = 128};
  const auto open = [&] { return open_transformer_runner(folder.path(), options); };
  check_real_split(*open(), *open(), *open());
}

}  // namespace
}  // namespace pelago::serve
