// Prompts read on one side, answers written on the other: with a wire that the test moves by hand,
// and over UCX between two threads.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <future>
#include <thread>

#include "base/error.h"
#include "model/model_support.h"
#include "serve/engine/fake_runner.h"
#include "serve/local/local_engine.h"
#include "serve/split/loop_link.h"
#include "serve/split/prefill_side.h"
#include "serve/split/remote_reader.h"
#include "serve/split/split_support.h"

namespace pelago::serve {
namespace {

struct SplitBench {
  explicit SplitBench(int64_t decode_pages,
                      int64_t prefill_pages = 40,
                      int64_t step_tokens = 16,
                      const RemoteOptions& remote = {.tokens_min = 8})
      : tokenizer(byte_tokenizer()),
        decode_runner({.num_pages = decode_pages, .context_length = 96}),
        prefill_runner({.num_pages = prefill_pages, .context_length = 96}),
        engine(decode_runner,
               tokenizer,
               {.scheduler = {.step_tokens = 32, .sequences_max = 8}, .end_tokens = {kSplitEnd}}) {
    auto owned = std::make_unique<RemoteReader>(wire.end(0), remote);
    reader = owned.get();
    engine.read_with(std::move(owned), [this] { ++num_wakes; });
    prefill = std::make_unique<PrefillSide>(
        prefill_runner, wire.end(1), PrefillOptions{.step_tokens = step_tokens});
  }
  ~SplitBench() { engine.stop_reading(); }

  std::shared_ptr<Answer> ask(const GenerateRequest& request) {
    auto answer = std::make_shared<Answer>();
    REQUIRE(engine.check(request).has_value());
    engine.submit(next_id++, request, collect(answer));
    return answer;
  }
  bool move(Rng& rng) {
    switch (rng.next_below(4)) {
      case 0:
        return engine.step();
      case 1:
        return prefill->step();
      case 2:
        return wire.carry(0, 1 + static_cast<int>(rng.next_below(3))) > 0;
      default:
        return wire.carry(1, 1 + static_cast<int>(rng.next_below(8))) > 0;
    }
  }
  /// Until nothing moves any more.
  void finish() {
    while (true) {
      bool moved = engine.step();
      moved |= prefill->step();
      moved |= wire.carry(0, 100) > 0;
      moved |= wire.carry(1, 100) > 0;
      if (!moved && !prefill->step() && !engine.step()) return;
    }
  }

  data::Tokenizer tokenizer;
  LoopWire wire{sizeof(SplitHead) + sizeof(Greeting)};  // six layers of pages, or twelve tokens
  TwoLayerRunner decode_runner, prefill_runner;
  BatchEngine engine;
  RemoteReader* reader = nullptr;
  std::unique_ptr<PrefillSide> prefill;
  RequestId next_id = 1;
  int num_wakes = 0;
};

TEST_CASE("tokens are those of one device, and no page stays held on either side") {
  uint64_t num_read = 0, num_preempted = 0, num_cancelled = 0, num_cut = 0;
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("split");
    const RemoteOptions remote = {.tokens_min = 8,
                                  .local_share = rng.next_below(3) == 0 ? 0.3 : 0,
                                  .orders_max = 1 + static_cast<int>(rng.next_below(4))};
    SplitBench bench(static_cast<int64_t>(36 + rng.next_below(60)),
                     static_cast<int64_t>(26 + rng.next_below(30)),
                     static_cast<int64_t>(3 + rng.next_below(30)),
                     remote);
    const bool is_cut = rng.next_below(4) == 0;
    std::vector<SplitAsked> all;
    for (int idx = 0; idx < 30; ++idx) {
      const GenerateRequest request = split_request(rng);
      all.push_back({bench.next_id, request, bench.ask(request)});
      for (uint64_t moves = rng.next_below(25); moves > 0; --moves) bench.move(rng);
      if (rng.next_below(5) == 0) {
        const SplitAsked& unlucky = all[rng.next_below(all.size())];
        bench.engine.cancel(unlucky.id);
        CHECK(unlucky.answer->is_over);
      }
      if (is_cut && idx == 20) {
        bench.wire.cut();
        ++num_cut;
      }
    }
    bench.finish();
    for (const SplitAsked& asked : all) check_split_answer(asked, bench.engine.context_length());
    const EngineStats stats = bench.engine.stats();
    CHECK(stats.num_pages_used == 0);
    CHECK(stats.num_running + stats.num_waiting == 0);
    CHECK(bench.reader->num_waiting_tokens() == 0);
    if (!is_cut) {
      CHECK(bench.prefill->stats().num_orders == 0);
      CHECK(bench.prefill->stats().num_pages_used == 0);
    }
    num_read += bench.reader->num_read();
    num_preempted += stats.num_preempted;
    num_cancelled += stats.num_cancelled;
  }
  // The run proves nothing about what it did not do.
  MESSAGE("read elsewhere ", num_read, " preempted ", num_preempted, " cancelled ", num_cancelled);
  CHECK(num_read > 500);
  CHECK(num_preempted > 0);
  CHECK(num_cancelled > 100);
  CHECK(num_cut > 5);
}

TEST_CASE("the decode side computes one token of a prompt that was read elsewhere") {
  SplitBench bench(80);
  GenerateRequest request;
  for (int32_t token = 0; token < 41; ++token) request.prompt.push_back(token);
  request.max_new_tokens = 1;
  request.sampling.seed = 1;
  const auto first = bench.ask(request);
  bench.finish();
  CHECK(first->is_over);
  CHECK(first->cached_tokens == 0);
  CHECK(bench.prefill->stats().num_tokens_computed == 40);
  CHECK(bench.decode_runner.num_tokens_computed == 1);
  // Pages that came are remembered: what begins alike is not asked for again.
  const auto second = bench.ask(request);
  bench.finish();
  CHECK(second->cached_tokens == 40);
  CHECK(bench.prefill->stats().num_tokens_computed == 40);
  CHECK(second->choices[0].tokens == first->choices[0].tokens);
}

TEST_CASE("pages leave while later pieces of the prompt are still to be computed") {
  SplitBench bench(80, 40, /*step_tokens=*/8);
  Rng rng(3);
  GenerateRequest request = split_request(rng);
  request.prompt.assign(41, 7);
  bench.ask(request);
  bench.wire.carry(1, 1);  // the greeting
  bench.engine.step();
  bench.wire.carry(0, 100);
  CHECK(bench.prefill->step());
  CHECK(bench.prefill->stats().num_tokens_computed == 8);
  CHECK(bench.wire.carry(1, 100) == 2);  // two pages in a frame, a frame a layer
  bench.finish();
}

TEST_CASE("a decode side without room for a prompt's pages sends no order") {
  SplitBench bench(30);  // 25 are kept for the longest sequence
  Rng rng(3);
  GenerateRequest request = split_request(rng);
  request.prompt.assign(41, 7);
  const auto answer = bench.ask(request);
  bench.finish();
  CHECK(answer->is_over);
  CHECK(bench.prefill->stats().num_orders_done == 0);
  CHECK(bench.engine.stats().num_pages_used == 0);
}

TEST_CASE("a prefill side with another model is not listened to") {
  SplitBench bench(80, 40, 16, {.tokens_min = 8, .model_key = 4});
  Rng rng(3);
  GenerateRequest request = split_request(rng);
  request.prompt.assign(41, 7);
  const SplitAsked asked = {1, request, bench.ask(request)};
  bench.finish();
  check_split_answer(asked, bench.engine.context_length());
  CHECK(bench.reader->lost().starts_with("it has another model, kv_dtype or page_tokens"));
  CHECK(bench.reader->num_read() == 0);
}

TEST_CASE("orders and frames of a side gone mad are refused, not believed") {
  LoopWire wire(256);
  TwoLayerRunner runner({.num_pages = 10});
  PrefillSide prefill(runner, wire.end(1), {.step_tokens = 16});
  const auto peer = wire.end(0);
  std::vector<SplitHead> heard;
  peer->start({.on_frame =
                   [&](std::span<const std::byte> frame) {
                     std::span<const std::byte> content;
                     heard.push_back(*read_split(frame, content));
                   },
               .on_lost = [](const std::string&) {}});
  const auto order = [&](SplitHead head, std::vector<int32_t> tokens) {
    head.kind = SplitKind::kOrder;
    peer->send([=](std::span<std::byte> frame) {
      return put_split(frame, head, std::as_bytes(std::span(tokens)));
    });
  };
  order({.request = 1, .count = 1, .total = 1'000'000}, {1});      // too long
  order({.request = 2, .count = 1, .total = 1}, {260});            // no such token
  order({.request = 3, .count = 2, .total = 1}, {1, 2});           // more than it says
  order({.request = 4, .first = 5, .count = 1, .total = 9}, {1});  // no beginning
  order({.request = 5, .count = 9, .total = 9}, {1});              // cut short
  order({.request = 6, .count = 1, .total = 1, .first_page = 4'000'000}, {1});
  peer->send([](std::span<std::byte> frame) { return frame.size() > 3 ? size_t{3} : size_t{0}; });
  for (int round = 0; round < 5; ++round) {
    wire.carry(0, 100);
    prefill.step();
    wire.carry(1, 100);
  }
  std::vector<uint64_t> refused;
  for (const SplitHead& head : heard) {
    if (head.kind == SplitKind::kRefused) refused.push_back(head.request);
  }
  const std::vector<uint64_t> wanted = {1, 2, 3};
  CHECK(refused == wanted);
  CHECK(prefill.stats().num_pages_used == 0);
}

/// An engine whose prompts are read at the other end of a UCX link.
struct LinkedEngine {
  explicit LinkedEngine(const std::filesystem::path& folder) {
    auto owned = std::make_unique<RemoteReader>(
        chips::open_frame_link({.rank = 0, .rendezvous_dir = folder}),
        RemoteOptions{.tokens_min = 8});
    reader = owned.get();
    engine = std::make_unique<LocalEngine>(
        std::make_unique<TwoLayerRunner>(FakeRunner::Shape{.num_pages = 200, .context_length = 96}),
        byte_tokenizer(),
        BatchOptions{.scheduler = {.step_tokens = 32, .sequences_max = 8},
                     .end_tokens = {kSplitEnd}},
        nullptr,
        std::move(owned));
  }
  /// Asks, and calls meanwhile once the first has been answered; checks all answers.
  void answer_some(const std::function<void()>& meanwhile) {
    std::vector<SplitAsked> all;
    std::vector<std::future<void>> overs;
    for (int idx = 0; idx < 24; ++idx) {
      const auto over = std::make_shared<std::promise<void>>();
      overs.push_back(over->get_future());
      all.push_back({0, split_request(rng), std::make_shared<Answer>()});
      const auto id = engine->submit(all.back().request,
                                     [over, take = collect(all.back().answer)](const Piece& piece) {
                                       take(piece);
                                       if (piece.is_last) over->set_value();
                                     });
      REQUIRE(id.has_value());
    }
    // A bound for what hangs, far beyond what any load of the machine makes of milliseconds.
    const auto patience = std::chrono::minutes(2);
    REQUIRE(overs[0].wait_for(patience) == std::future_status::ready);
    meanwhile();
    for (std::future<void>& over : overs) {
      REQUIRE(over.wait_for(patience) == std::future_status::ready);
    }
    for (const SplitAsked& asked : all) check_split_answer(asked, 96);
  }

  RemoteReader* reader = nullptr;
  std::unique_ptr<LocalEngine> engine;
  Rng rng{8};
};

void read_prompts(const std::filesystem::path& folder, const std::stop_token& stop) {
  TwoLayerRunner runner({.num_pages = 40});
  PrefillSide side(
      runner, chips::open_frame_link({.rank = 1, .rendezvous_dir = folder}), {.step_tokens = 16});
  side.run(stop);
}

TEST_CASE("over UCX two threads answer as one, and one alone when the other has gone") {
  const model::ScratchFolder folder;
  std::stop_source stop;
  std::jthread prefill([&] { read_prompts(folder.path(), stop.get_token()); });
  LinkedEngine linked(folder.path());
  linked.answer_some([] {});
  CHECK(linked.reader->num_read() > 5);
  CHECK(linked.reader->lost().empty());
  stop.request_stop();
  prefill.join();
  linked.answer_some([] {});
  CHECK(!linked.reader->lost().empty());
}

TEST_CASE("a prefill process that is killed costs nobody an answer") {
  const model::ScratchFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    read_prompts(folder.path(), {});
    ::_exit(0);
  }
  LinkedEngine linked(folder.path());
  linked.answer_some([&] { ::kill(child, SIGKILL); });
  ::waitpid(child, nullptr, 0);
  linked.answer_some([] {});
  CHECK(!linked.reader->lost().empty());
}

}  // namespace
}  // namespace pelago::serve
