// A prefill side that is lost and one that follows it: who reads a prompt meanwhile, and what
// becomes of what was on its way. The sides live in this process and die by the test's word.
#include "serve/split/prefill_keeper.h"

#include <doctest/doctest.h>

#include <condition_variable>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "serve/local/batch_engine.h"
#include "serve/split/loop_link.h"
#include "serve/split/prefill_side.h"
#include "serve/split/remote_reader.h"
#include "serve/split/split_support.h"

namespace pelago::serve {
namespace {

/// What becomes of the sides that a keeper starts, one after another.
class Lives {
 public:
  StartPrefill start() {
    return [this]() -> std::unique_ptr<PrefillHost> {
      const std::lock_guard lock(mutex_);
      const size_t idx = num_started_++;
      changed_.notify_all();
      return std::make_unique<Host>(*this, idx);
    };
  }
  void kill(size_t idx) {
    const std::lock_guard lock(mutex_);
    lives_.at(idx).is_killed = true;
    changed_.notify_all();
  }
  /// All from this one on fail as soon as they are started.
  void fail_from(size_t idx) {
    const std::lock_guard lock(mutex_);
    first_failing_ = idx;
  }
  void wait_until(const std::function<bool()>& is_so) {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(lock, std::chrono::minutes(1), is_so);
    REQUIRE(came);
  }
  void wait_for_end(size_t idx) {
    wait_until([&] { return lives_.at(idx).has_ended; });
  }
  void wait_for_links(size_t count) {
    wait_until([&] { return num_watched_ >= count; });
  }
  void wait_for_starts(size_t count) {
    wait_until([&] { return num_started_ >= count; });
  }
  size_t num_started() {
    const std::lock_guard lock(mutex_);
    return num_started_;
  }
  LoopWire& wire(size_t idx) { return *lives_.at(idx).wire; }

 private:
  struct Life {
    std::unique_ptr<LoopWire> wire =
        std::make_unique<LoopWire>(sizeof(SplitHead) + sizeof(Greeting));
    bool is_killed = false, has_ended = false;
  };
  class Host final : public PrefillHost {
   public:
    Host(Lives& lives, size_t idx) : lives_(lives), idx_(idx) {}
    ~Host() override {
      const std::lock_guard lock(lives_.mutex_);
      lives_.lives_.at(idx_).has_ended = true;
      lives_.changed_.notify_all();
    }
    int64_t pid() const override { return static_cast<int64_t>(idx_) + 1; }
    std::unique_ptr<chips::FrameLink> connect(const std::stop_token&) override {
      const std::lock_guard lock(lives_.mutex_);
      if (idx_ >= lives_.first_failing_) throw Failure("no such chip", kExitUsage);
      return lives_.lives_.at(idx_).wire->end(0);
    }
    std::string wait(const std::stop_token& stop) override {
      std::unique_lock lock(lives_.mutex_);
      ++lives_.num_watched_;  // its link was offered
      lives_.changed_.notify_all();
      lives_.changed_.wait(lock, stop, [&] { return lives_.lives_.at(idx_).is_killed; });
      return lives_.lives_.at(idx_).is_killed ? "it was killed" : "";
    }
    std::string end() override { return "its part was over"; }

   private:
    Lives& lives_;
    const size_t idx_;
  };

  std::mutex mutex_;  // guards what follows
  std::condition_variable_any changed_;
  std::vector<Life> lives_{8};
  size_t num_started_ = 0, num_watched_ = 0, first_failing_ = 1000;
};

/// An engine whose prompts are read by one life after another.
struct KeptEngine {
  explicit KeptEngine(const RestartLaw& law = {.pause_s = 0}) {
    auto keeper = std::make_unique<PrefillKeeper>(lives.start(), law);
    auto link = keeper->first_link();
    auto owned = std::make_unique<RemoteReader>(
        std::move(link), RemoteOptions{.tokens_min = 8}, std::move(keeper));
    reader = owned.get();
    engine.read_with(std::move(owned), [] {});
    lives.wait_for_links(1);
    open_side(0);
  }
  ~KeptEngine() { engine.stop_reading(); }

  void open_side(size_t life_idx, uint64_t model_key = 0) {
    life = life_idx;
    side = std::make_unique<PrefillSide>(side_runner,
                                         lives.wire(life_idx).end(1),
                                         PrefillOptions{.step_tokens = 16, .model_key = model_key});
    lives.wire(life).carry(1, 1);  // the greeting
    engine.step();
  }
  SplitAsked ask(int32_t first_token) {
    GenerateRequest request;
    for (int32_t idx = 0; idx < 60; ++idx) request.prompt.push_back((first_token + idx) % 250);
    request.max_new_tokens = 5;
    request.sampling.seed = 3;
    SplitAsked asked = {next_id++, request, std::make_shared<Answer>()};
    engine.submit(asked.id, request, collect(asked.answer));
    return asked;
  }
  /// The side and its line are at work as long as there is one.
  void finish() {
    while (true) {
      bool moved = engine.step();
      if (side != nullptr) {
        moved |= side->step();
        moved |= lives.wire(life).carry(0, 100) > 0;
        moved |= lives.wire(life).carry(1, 100) > 0;
      }
      if (!moved && !engine.step()) return;
    }
  }

  Lives lives;
  data::Tokenizer tokenizer = byte_tokenizer();
  TwoLayerRunner runner{{.num_pages = 120, .context_length = 96}};
  TwoLayerRunner side_runner{{.num_pages = 40, .context_length = 96}};
  BatchEngine engine{
      runner,
      tokenizer,
      {.scheduler = {.step_tokens = 32, .sequences_max = 8}, .end_tokens = {kSplitEnd}}};
  RemoteReader* reader = nullptr;
  std::unique_ptr<PrefillSide> side;
  size_t life = 0;
  RequestId next_id = 1;
};

TEST_CASE(
    "what a lost prefill side was reading is read here, and the next one reads what follows") {
  KeptEngine kept;
  CHECK(kept.engine.stats().num_prefill_sides == 1);
  CHECK(kept.engine.stats().num_prefill_up == 1);
  const SplitAsked in_flight = kept.ask(1), ordered = kept.ask(100);
  kept.engine.step();
  kept.lives.wire(0).carry(0, 100);
  REQUIRE(kept.side->step());
  CHECK(kept.lives.wire(0).carry(1, 1) == 1);  // some of its pages came
  CHECK(kept.engine.stats().num_running == 0);

  kept.lives.kill(0);
  kept.lives.wait_for_links(2);
  kept.engine.step();
  CHECK(kept.engine.stats().num_prefill_up == 0);
  CHECK(kept.engine.stats().num_prefill_restarts == 1);
  // The next one is there, but has not greeted: nobody waits for it.
  kept.side = nullptr;
  const SplitAsked meanwhile = kept.ask(50);
  kept.finish();
  for (const SplitAsked& asked : {in_flight, ordered, meanwhile}) check_split_answer(asked, 96);
  CHECK(kept.reader->num_read() == 0);
  CHECK(kept.engine.stats().num_pages_used == 0);

  kept.open_side(1);
  CHECK(kept.engine.stats().num_prefill_up == 1);
  CHECK(kept.reader->lost().empty());
  const SplitAsked later = kept.ask(200);
  kept.finish();
  check_split_answer(later, 96);
  CHECK(kept.reader->num_read() == 1);
  CHECK(kept.side->stats().num_tokens_computed == 59);
  CHECK(kept.engine.stats().num_prefill_restarts == 1);
}

TEST_CASE("answers are those of one device, however often the side that reads is lost") {
  uint64_t num_read = 0, num_restarts = 0;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("lives");
    KeptEngine kept;
    std::vector<SplitAsked> all;
    for (size_t life = 0; life < 4; ++life) {
      for (int idx = 0; idx < 6; ++idx) {
        SplitAsked asked = {kept.next_id++, split_request(rng), std::make_shared<Answer>()};
        kept.engine.submit(asked.id, asked.request, collect(asked.answer));
        all.push_back(asked);
        LoopWire& wire = kept.lives.wire(life);
        for (uint64_t moves = rng.next_below(12); moves > 0; --moves) {
          const uint64_t which = rng.next_below(4);
          if (which == 0) kept.engine.step();
          if (which == 1) kept.side->step();
          if (which == 2) wire.carry(0, 1 + static_cast<int>(rng.next_below(3)));
          if (which == 3) wire.carry(1, 1 + static_cast<int>(rng.next_below(8)));
        }
        if (rng.next_below(6) == 0) kept.engine.cancel(all[rng.next_below(all.size())].id);
      }
      if (life == 3) break;
      // Noticed by the link or by the keeper, whoever is first.
      if (rng.next_below(2) == 0) {
        kept.side = nullptr;
        kept.engine.step();
      } else {
        kept.lives.kill(life);
      }
      kept.lives.wait_for_links(life + 2);
      for (uint64_t steps = rng.next_below(4); steps > 0; --steps) kept.engine.step();
      kept.side = nullptr;
      kept.engine.step();
      kept.open_side(life + 1);
    }
    kept.finish();
    for (const SplitAsked& asked : all) check_split_answer(asked, 96);
    CHECK(kept.engine.stats().num_pages_used == 0);
    CHECK(kept.reader->num_waiting_tokens() == 0);
    num_read += kept.reader->num_read();
    num_restarts += kept.engine.stats().num_prefill_restarts;
  }
  CHECK(num_restarts == 90);
  CHECK(num_read > 100);
}

TEST_CASE("a side that turns out to be of no use is ended, and another started") {
  KeptEngine kept;
  kept.lives.kill(0);
  kept.lives.wait_for_links(2);
  kept.engine.step();
  kept.open_side(1, /*model_key=*/7);  // the folder has other weights by now
  CHECK(kept.reader->lost().starts_with("it has another model"));
  CHECK(kept.engine.stats().num_prefill_up == 0);
  kept.lives.wait_for_end(1);
  kept.lives.wait_for_links(3);
  kept.engine.step();
  kept.open_side(2);
  CHECK(kept.engine.stats().num_prefill_up == 1);
}

TEST_CASE("a side that falls again and again is left alone, and the engine answers without it") {
  KeptEngine kept({.pause_s = 0, .losses_max = 3, .quarantine_s = 1e6});
  kept.lives.fail_from(1);
  kept.lives.kill(0);
  kept.lives.wait_for_starts(3);
  kept.engine.step();
  kept.side = nullptr;
  const SplitAsked asked = kept.ask(1);
  kept.finish();
  check_split_answer(asked, 96);
  CHECK(kept.lives.num_started() == 3);
  CHECK(kept.engine.stats().num_prefill_up == 0);
}

TEST_CASE("a first side that cannot open is told as it said it, and no other is tried") {
  Lives lives;
  lives.fail_from(0);
  {
    PrefillKeeper keeper(lives.start(), {.pause_s = 0});
    try {
      keeper.first_link();
      FAIL("there was a link");
    } catch (const Failure& failure) {
      CHECK(std::string(failure.what()) == "no such chip");
      CHECK(failure.exit_code() == kExitUsage);
    }
  }
  CHECK(lives.num_started() == 1);
}

TEST_CASE(
    "a loss is followed at once, losses in a row after pauses that double, then by quarantine") {
  const RestartLaw law = {.pause_s = 1, .pause_max_s = 5, .healthy_s = 30, .losses_max = 6};
  RestartPace pace;
  CHECK(pace.note_loss(law, 0) == 0);
  CHECK(pace.note_loss(law, 29) == 2);
  CHECK(pace.note_loss(law, 0) == 4);
  CHECK(pace.note_loss(law, 0) == 5);
  CHECK(pace.note_loss(law, 31) == 0);
  for (int loss = 2; loss < 6; ++loss) CHECK(pace.note_loss(law, 1) < 600);
  CHECK_FALSE(pace.is_quarantined(law));
  CHECK(pace.note_loss(law, 1) == 600);
  CHECK(pace.is_quarantined(law));
  CHECK(pace.note_loss(law, 1) == 600);
  CHECK(pace.note_loss(law, 31) == 0);  // it has served meanwhile
  CHECK_FALSE(pace.is_quarantined(law));
  RestartPace workers;
  for (int loss = 0; loss < 100; ++loss) CHECK(workers.note_loss({}, 0) <= 10);
}

}  // namespace
}  // namespace pelago::serve
