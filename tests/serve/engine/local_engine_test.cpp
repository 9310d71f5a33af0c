#include "serve/local/local_engine.h"

#include <doctest/doctest.h>

#include <condition_variable>
#include <mutex>

#include "model/model_support.h"
#include "serve/engine/fake_runner.h"
#include "serve/runner/transformer_runner.h"
#include "serve/speculation/model_drafter.h"

namespace pelago::serve {
namespace {

/// Computes only while its gate is open.
class GatedRunner final : public FakeRunner {
 public:
  struct Gate {
    std::mutex mutex;  // guards what follows
    std::condition_variable changed;
    bool is_open = false;
    int num_arrived = 0;
    void open() {
      const std::lock_guard lock(mutex);
      is_open = true;
      changed.notify_all();
    }
    void wait_for_arrival() {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return num_arrived > 0; });
    }
  };
  GatedRunner(const Shape& shape, Gate& gate) : FakeRunner(shape), gate_(gate) {}
  RunnerOutput forward(std::span<const SequenceChunk> chunks) override {
    std::unique_lock lock(gate_.mutex);
    ++gate_.num_arrived;
    gate_.changed.notify_all();
    gate_.changed.wait(lock, [&] { return gate_.is_open; });
    return FakeRunner::forward(chunks);
  }

 private:
  Gate& gate_;  // outlives the runner
};

/// Waits for a request's last piece.
struct LastPiece {
  std::function<void(const Piece&)> on_piece() {
    return [this](const Piece& piece) {
      const std::lock_guard lock(mutex);
      text += piece.text;
      num_tokens += piece.tokens.size();
      if (!piece.is_last) return;
      last = piece;
      changed.notify_all();
    };
  }
  Piece wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return last.has_value(); });
    return *last;
  }
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  std::optional<Piece> last;
  std::string text;
  size_t num_tokens = 0;
};

GenerateRequest short_request(int32_t token, int64_t max_new_tokens) {
  GenerateRequest request;
  request.prompt = {token, 7, 8};
  request.max_new_tokens = max_new_tokens;
  request.sampling.seed = 5;
  request.ignore_end = true;
  return request;
}

BatchOptions small_batches(int64_t waiting_max) {
  return {.scheduler = {.step_tokens = 32, .sequences_max = 2},
          .waiting_max = waiting_max,
          .end_tokens = {256}};
}

TEST_CASE("a full queue says so at the door, and those inside are served") {
  GatedRunner::Gate gate;
  LocalEngine engine(
      std::make_unique<GatedRunner>(FakeRunner::Shape{}, gate), byte_tokenizer(), small_batches(3));
  std::vector<std::unique_ptr<LastPiece>> inside;
  const auto knock = [&] {
    inside.push_back(std::make_unique<LastPiece>());
    return engine.submit(short_request(static_cast<int32_t>(inside.size()), 4),
                         inside.back()->on_piece());
  };
  REQUIRE(knock().has_value());
  gate.wait_for_arrival();  // the first is being computed
  int num_taken = 0;
  Result<RequestId> last = knock();
  while (last) {
    ++num_taken;
    REQUIRE(num_taken < 10);
    last = knock();
  }
  CHECK(last.error().code == ErrorCode::kNoSpace);
  CHECK((num_taken == 3 || num_taken == 2));  // the first counts until its step is over
  inside.pop_back();
  CHECK(engine.stats().num_refused == 1);
  gate.open();
  for (const auto& piece : inside) CHECK(piece->wait().finish == Finish::kLength);
}

TEST_CASE("who hangs up gets a last piece, others their whole answers") {
  GatedRunner::Gate gate;
  LocalEngine engine(std::make_unique<GatedRunner>(FakeRunner::Shape{}, gate),
                     byte_tokenizer(),
                     small_batches(30));
  LastPiece leaving, staying;
  const auto id = engine.submit(short_request(1, 150), leaving.on_piece());
  REQUIRE(id.has_value());
  REQUIRE(engine.submit(short_request(2, 50), staying.on_piece()).has_value());
  gate.wait_for_arrival();
  engine.cancel(*id);
  engine.cancel(*id + 100);  // nobody
  gate.open();
  CHECK(leaving.wait().finish == Finish::kCancelled);
  CHECK(staying.wait().completion_tokens == 50);
  engine.cancel(*id);  // over already
  CHECK(engine.is_ready());
}

TEST_CASE("an engine whose chip is lost tells everybody and takes nobody in") {
  auto runner = std::make_unique<FakeRunner>(FakeRunner::Shape{});
  runner->fail_at_pass = 3;
  LocalEngine engine(std::move(runner), byte_tokenizer(), small_batches(30));
  LastPiece unlucky;
  REQUIRE(engine.submit(short_request(1, 50), unlucky.on_piece()).has_value());
  const Piece last = unlucky.wait();
  CHECK(last.finish == Finish::kError);
  CHECK(last.error.find("the chip fell off") != std::string::npos);
  CHECK_FALSE(engine.is_ready());
  const auto late = engine.submit(short_request(1, 5), unlucky.on_piece());
  REQUIRE(!late);
  CHECK(late.error().code == ErrorCode::kUnavailable);
  CHECK_FALSE(engine.embed({{1, 2}}).has_value());
}

TEST_CASE("an engine that is closed ends what is under way as cancelled") {
  GatedRunner::Gate gate;
  LastPiece cut;
  {
    LocalEngine engine(std::make_unique<GatedRunner>(FakeRunner::Shape{}, gate),
                       byte_tokenizer(),
                       small_batches(30));
    REQUIRE(engine.submit(short_request(1, 190), cut.on_piece()).has_value());
    gate.wait_for_arrival();
    gate.open();
  }
  const Finish finish = cut.wait().finish;
  CHECK((finish == Finish::kCancelled || finish == Finish::kLength));
}

/// A folder with a tiny model and a byte tokenizer.
struct TinyFolder {
  explicit TinyFolder(uint64_t seed) : config(model::tiny_config("qwen3", true)) {
    config.vocab_size = 260;
    config.max_position_embeddings = 128;
    config.eos_token_id = 256;
    flat = model::lively_weights(config, seed);
    model::save_model_folder(folder.path(), config, flat, at::kFloat, {});
    byte_tokenizer().write(folder.path());
  }
  /// log softmax of what follows each token but the last, by the trainer: [T-1][V].
  std::vector<std::vector<float>> trainer_logprobs(const std::vector<int32_t>& tokens) const {
    const model::Parameters parameters(config, flat.clone());
    const model::Transformer transformer(config, parameters);
    model::KvCache cache(config, 1, at::kCPU, at::kFloat);
    std::vector<std::vector<float>> rows;
    for (size_t idx = 0; idx + 1 < tokens.size(); ++idx) {
      const Tensor logits =
          transformer.next_logits(at::full({1, 1}, tokens[idx], at::kLong), cache);
      const Tensor row = at::log_softmax(logits, -1).contiguous();
      rows.emplace_back(row.data_ptr<float>(), row.data_ptr<float>() + row.numel());
    }
    return rows;
  }
  model::ScratchFolder folder;
  model::ModelConfig config;
  Tensor flat;
};

std::unique_ptr<ModelRunner> f32_runner(const TinyFolder& tiny, int64_t num_pages) {
  RunnerOptions options;
  options.kv = KvDtype::kF32;
  options.page_tokens = 16;
  options.num_pages = num_pages;
  options.max_batch_tokens = 96;
  return open_cpu_runner(tiny.folder.path(), options);
}

/// Asks many things at once, hangs up on some; checks every token against the trainer. Returns how
/// often an answer had to give its pages back.
uint64_t check_against_trainer(ModelRunner& runner, const TinyFolder& tiny, uint64_t seed) {
  const data::Tokenizer tokenizer = byte_tokenizer();
  BatchEngine engine(runner,
                     tokenizer,
                     {.scheduler = {.step_tokens = 40, .sequences_max = 8}, .end_tokens = {256}});
  Rng rng = Rng(seed).fork("requests");
  std::vector<std::pair<GenerateRequest, std::shared_ptr<Answer>>> all;
  for (RequestId id = 1; id <= 16; ++id) {
    GenerateRequest request;
    // Short ones that grow crowd the pages, long ones that begin alike share some.
    const uint64_t num_prompt = id % 4 == 0 ? 40 + rng.next_below(20) : 1 + rng.next_below(12);
    for (uint64_t idx = 0; idx < num_prompt; ++idx) {
      request.prompt.push_back(static_cast<int32_t>(idx < 40 ? 3 * idx : rng.next_below(256)));
    }
    request.max_new_tokens = 20 + static_cast<int64_t>(rng.next_below(30));
    request.ignore_end = true;
    request.num_choices = id == 5 ? 2 : 1;
    request.num_logprobs = 3;
    request.sampling.temperature = rng.next_below(2) == 0 ? 0 : 1;
    request.sampling.seed = rng.next_u64();
    all.emplace_back(request, std::make_shared<Answer>());
    engine.submit(id, request, collect(all.back().second));
    for (uint64_t steps = rng.next_below(4); steps > 0; --steps) engine.step();
    if (rng.next_below(6) == 0) engine.cancel(1 + rng.next_below(id));
  }
  while (engine.step()) {
  }
  CHECK(engine.stats().cached_tokens > 0);
  CHECK(engine.stats().num_pages_used == 0);
  double worst = 0;
  for (const auto& [request, answer] : all) {
    for (const auto& [choice_idx, choice] : answer->choices) {
      if (choice.logprobs.empty()) continue;
      std::vector<int32_t> tokens = request.prompt;
      tokens.insert(tokens.end(), choice.tokens.begin(), choice.tokens.end());
      const auto rows = tiny.trainer_logprobs(tokens);
      for (size_t idx = 0; idx < choice.logprobs.size(); ++idx) {
        const std::vector<float>& row = rows[request.prompt.size() - 1 + idx];
        const TokenLogprob& logprob = choice.logprobs[idx];
        const auto compare = [&](int32_t token, float value) {
          worst = std::max(worst,
                           static_cast<double>(std::abs(row[static_cast<size_t>(token)] - value)));
        };
        compare(logprob.token, logprob.logprob);
        for (const auto& [token, value] : logprob.top) compare(token, value);
      }
    }
  }
  INFO("seed ", seed);
  CHECK(worst < 1e-3);
  return engine.stats().num_preempted;
}

TEST_CASE("under batching, preemption, prefix hits and cancellations, logits are the trainer's") {
  const TinyFolder tiny(3);
  uint64_t num_preempted = check_against_trainer(*f32_runner(tiny, 14), tiny, 1);
  const auto plain = open_transformer_runner(
      tiny.folder.path(),
      {.dtype = "f32", .page_tokens = 16, .num_pages = 14, .max_batch_tokens = 96});
  num_preempted += check_against_trainer(*plain, tiny, 3);
  CHECK(num_preempted > 0);
}

TEST_CASE("a small model's guesses change no token, at any temperature") {
  const TinyFolder tiny(3);
  const data::Tokenizer tokenizer = byte_tokenizer();
  const auto answers = [&](std::unique_ptr<Drafter> drafter, uint64_t* num_accepted) {
    const auto runner = f32_runner(tiny, 60);
    BatchEngine engine(*runner,
                       tokenizer,
                       {.scheduler = {.step_tokens = 40, .sequences_max = 4},
                        .speculation = {.draft_max = 4, .rows_max = 16},
                        .end_tokens = {256}},
                       std::move(drafter));
    std::vector<std::vector<int32_t>> tokens;
    for (RequestId id = 1; id <= 6; ++id) {
      GenerateRequest request = short_request(static_cast<int32_t>(id), 24);
      request.sampling.temperature = id <= 3 ? 0.0F : 0.8F;
      request.sampling.seed = id;
      const auto answer = std::make_shared<Answer>();
      engine.submit(id, request, collect(answer));
      if (id % 2 == 0) {
        while (engine.step()) {
        }
      }
      tokens.push_back({});
      while (engine.step()) {
      }
      tokens.back() = answer->choices[0].tokens;
    }
    *num_accepted = engine.stats().draft_accepted;
    return tokens;
  };
  uint64_t without = 0, with = 0;
  const auto plain = answers(nullptr, &without);
  // The model itself as its own draft: what it guesses, it will draw.
  const auto guessed = answers(std::make_unique<ModelDrafter>(f32_runner(tiny, 60)), &with);
  CHECK(plain == guessed);
  CHECK(without == 0);
  CHECK(with > 80);
  // Another model guesses mostly wrong.
  const TinyFolder other(4);
  uint64_t rarely = 0;
  CHECK(answers(std::make_unique<ModelDrafter>(f32_runner(other, 60)), &rarely) == plain);
  CHECK(rarely < with / 2);
}

TEST_CASE("a folder becomes an engine that answers and embeds") {
  const TinyFolder tiny(5);
  EngineOptions options;
  options.kv_memory_gb = 0.01;
  options.num_threads = 1;
  const auto engine = open_engine(tiny.folder.path(), options);
  CHECK(engine->context_length() == 128);
  LastPiece one, two;
  REQUIRE(engine->submit(short_request(65, 20), one.on_piece()).has_value());
  REQUIRE(engine->submit(short_request(65, 20), two.on_piece()).has_value());
  CHECK(one.wait().completion_tokens == 20);
  CHECK(two.wait().prompt_tokens == 3);
  CHECK(one.text == two.text);
  auto embeddings = engine->embed({{1, 2, 3}, {4, 5}});
  REQUIRE(embeddings.has_value());
  CHECK(embeddings->size() == 2);
  CHECK((*embeddings)[0].size() == static_cast<size_t>(tiny.config.hidden_size));
}

TEST_CASE("what an engine cannot be opened with is named") {
  const TinyFolder tiny(5);
  const auto failure = [&](auto change) {
    EngineOptions options;
    change(options);
    return model::failure_of([&] { open_engine(tiny.folder.path(), options); });
  };
  CHECK(failure([](auto& o) { o.dtype = "fp8"; }) ==
        "dtype is fp8: it must be f32, bf16, int8 or int4");
  CHECK(failure([](auto& o) { o.kv_dtype = "int4"; }).starts_with("kv_dtype is int4"));
  CHECK(failure([](auto& o) { o.page_tokens = 20; }).starts_with("page_tokens is 20"));
  CHECK(failure([](auto& o) { o.kv_memory_gb = 1e-9; }).starts_with("kv_memory_gb is 1e-09"));
  CHECK(failure([](auto& o) { o.num_threads = -1; }).starts_with("num_threads is -1"));
  CHECK(failure([](auto& o) { o.speculation.draft_max = 65; }).starts_with("draft_max is 65"));
  CHECK(model::failure_of([] { open_engine("/nowhere", {}); }) ==
        "/nowhere: not a model folder, it has no config.json");
}

}  // namespace
}  // namespace pelago::serve
