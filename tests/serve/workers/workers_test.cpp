// The router without processes: its workers are threads behind real sockets, their engines follow
// a script.
#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/rng.h"
#include "serve/api/scripted_engine.h"
#include "serve/workers/link/link.h"
#include "serve/workers/link/messages.h"
#include "serve/workers/router_engine.h"
#include "serve/workers/worker.h"

namespace pelago::serve {
namespace {

using Marks = std::vector<uint64_t>;

std::vector<int32_t> tokens_from(int32_t first, size_t count) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

TEST_CASE("a prompt goes where most of it is known, unless that worker has much more to do") {
  RoutePolicy policy(3, {.page_tokens = 4, .margin_sequences = 2});
  for (size_t idx = 0; idx < 3; ++idx) policy.forget(idx, 100);
  const Marks prompt = policy.marks_of(tokens_from(0, 40));
  REQUIRE(prompt.size() == 10);
  policy.remember(1, std::span(prompt).first(6));
  policy.remember(2, std::span(prompt).first(8));
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 0}, {true, 0}, {true, 2}}) == 2);
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 0}, {true, 0}, {true, 3}}) == 1);
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 0}, {true, 3}, {true, 3}}) == 0);
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 20}, {true, 20}, {true, 30}}) == 2);
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 0}, {false, 0}, {false, 0}}) == 0);
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>(3)) == -1);
  policy.forget(2, 100);
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>(3, {true, 0})) == 1);
}

TEST_CASE("little that is known weighs nothing: the least loaded and emptiest worker takes it") {
  RoutePolicy policy(2, {.page_tokens = 4});
  for (size_t idx = 0; idx < 2; ++idx) policy.forget(idx, 100);
  const Marks prompt = policy.marks_of(tokens_from(0, 40));
  policy.remember(0, std::span(prompt).first(2));
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 0}, {true, 0}}) == 1);
  policy.remember(0, std::span(prompt).first(3));
  CHECK(policy.choose(prompt, std::vector<WorkerLoad>{{true, 0}, {true, 0}}) == 0);
}

TEST_CASE("whatever comes, a chosen worker is open and within the margin, and memory is bounded") {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("routes");
    const size_t num_workers = 1 + rng.next_below(5);
    const RouteOptions options{.page_tokens = 2,
                               .known_share_min = 0.1 * static_cast<double>(rng.next_below(10)),
                               .margin_sequences = static_cast<int64_t>(rng.next_below(5))};
    RoutePolicy policy(num_workers, options);
    const size_t num_pages = rng.next_below(20);
    for (size_t idx = 0; idx < num_workers; ++idx) policy.forget(idx, num_pages);
    for (int request = 0; request < 60; ++request) {
      const auto prompt =
          tokens_from(static_cast<int32_t>(rng.next_below(3)), 1 + rng.next_below(50));
      const Marks marks = policy.marks_of(prompt);
      std::vector<WorkerLoad> loads;
      int64_t least = 1000;
      for (size_t idx = 0; idx < num_workers; ++idx) {
        loads.push_back({rng.next_below(3) > 0, static_cast<int64_t>(rng.next_below(12))});
        if (loads.back().is_open) least = std::min(least, loads.back().num_sequences);
      }
      const int chosen = policy.choose(marks, loads);
      REQUIRE((chosen >= 0) == (least < 1000));
      if (chosen < 0) continue;
      const auto idx = static_cast<size_t>(chosen);
      REQUIRE(loads[idx].is_open);
      REQUIRE(loads[idx].num_sequences <=
              std::max(least + options.margin_sequences,
                       static_cast<int64_t>(options.margin_ratio * static_cast<double>(least))));
      policy.remember(idx, marks);
      REQUIRE(policy.num_remembered(idx) <= num_pages);
      // Of what was sent last the beginning is known, as much of it as there is memory.
      REQUIRE(policy.num_known(idx, marks) == std::min(marks.size(), num_pages));
    }
  }
}

GenerateRequest full_request() {
  GenerateRequest request;
  request.prompt = {1, 2, 70000};
  request.max_new_tokens = 9;
  request.sampling = {.temperature = 0.5F, .top_k = 3, .logit_bias = {{4, -1.5F}}, .seed = 11};
  request.stop = {"", "end"};
  request.stop_tokens = {5};
  request.num_logprobs = 2;
  request.user = "lab/ann";
  return request;
}

TEST_CASE("a message is the same on the other side, and half of one is none") {
  Piece piece;
  piece.choice = 1;
  piece.text = "\xc3\xa9";
  piece.tokens = {3};
  piece.finish = Finish::kStop;
  piece.logprobs = {{.token = 3, .logprob = -0.5F, .top = {{3, -0.5F}, {4, -2.0F}}}};
  EngineOptions engine;
  engine.draft_folder = "/a/folder";
  engine.seed = 4;
  engine.prefill_device = "emulated:h20";
  engine.shared_weights = "/proc/1/fd/9";
  engine.slowdown = 30;
  const std::vector<Message> messages = {
      OpenMessage{.folder = "/m", .engine = engine},
      SubmitMessage{.id = 3,
                    .request = full_request(),
                    .constraint = ConstraintSource{ConstraintKind::kRegex, "a+"}},
      CancelMessage{.id = 9},
      EmbedMessage{.id = 1, .inputs = {{1, 2}, {}}},
      ReadyMessage{.context_length = 77, .stats = {.num_pages = 5}},
      PieceMessage{.id = 3, .piece = piece},
      RefusalMessage{.id = 3, .code = ErrorCode::kNoSpace, .message = "full"},
      EmbeddedMessage{.id = 1, .vectors = {{0.5F}}},
      BeatMessage{.stats = {.num_running = 1, .draft_accepted = 2}},
      LostMessage{.why = "no such file", .exit_code = 2}};
  for (const Message& message : messages) {
    CAPTURE(message.index());
    const std::string frame = frame_of(message);
    const std::string body = frame.substr(kFrameHeadBytes);
    const Result<Message> read = message_of(body);
    REQUIRE(read);
    CHECK(frame_of(*read) == frame);
    for (size_t length = 0; length < body.size(); ++length) {
      CHECK_FALSE(message_of(body.substr(0, length)));
    }
    CHECK_FALSE(message_of(body + "x"));
    // Any byte may be wrong; what comes of it is a message or none, and no more memory.
    for (size_t at = 0; at < body.size(); ++at) {
      std::string wrong = body;
      wrong[at] = '\xff';
      (void)message_of(wrong);
    }
  }
}

/// A worker on a thread of this process. To be killed is to lose its socket.
class ThreadHost final : public WorkerHost {
 public:
  ThreadHost(int socket, std::function<void(int)> body)
      : socket_(::dup(socket)),
        thread_([body = std::move(body), own = ::dup(socket)] { body(own); }) {}
  ~ThreadHost() override { ::close(socket_); }
  int64_t pid() const override { return 1; }
  void kill() override { ::shutdown(socket_, SHUT_RDWR); }
  std::string end(double) override {
    kill();
    thread_.join();
    return "its thread ended";
  }

 private:
  const int socket_;
  std::jthread thread_;
};

/// Workers with scripted engines, reachable by the test.
class Fleet {
 public:
  ScriptedEngine::Script script = {.waits = true, .context = 50};
  std::function<void(int)> body_of_next = {};  // in place of a healthy worker, once
  std::string opening_failure = {};

  StartWorker start() {
    return [this](size_t worker_idx, int socket) -> std::unique_ptr<WorkerHost> {
      const std::lock_guard lock(mutex_);
      std::function<void(int)> body = std::exchange(body_of_next, nullptr);
      if (!body) {
        body = [this](int own) {
          run_worker(own, [this](const OpenMessage& opening) -> std::unique_ptr<Engine> {
            if (!opening_failure.empty()) throw Failure(opening_failure, kExitUsage);
            CHECK(opening.folder == "model");
            return std::make_unique<ScriptedEngine>(script);
          });
        };
      }
      auto host = std::make_unique<ThreadHost>(socket, std::move(body));
      hosts_[worker_idx] = host.get();
      ++num_started_;
      return host;
    };
  }
  void kill(size_t worker_idx) {
    const std::lock_guard lock(mutex_);
    hosts_.at(worker_idx)->kill();
  }
  int num_started() {
    const std::lock_guard lock(mutex_);
    return num_started_;
  }

 private:
  std::mutex mutex_;  // guards what follows
  std::map<size_t, ThreadHost*> hosts_;
  int num_started_ = 0;
};

RouterOptions two_workers() {
  RouterOptions options;
  options.folder = "model";
  options.vocab_size = 260;
  options.engine.scheduler.sequences_max = 2;
  options.waiting_max = 3;
  options.restarts.pause_s = 0.01;
  options.silence_max_s = 60;  // a busy machine is no fault
  return options;
}

/// What comes of one request.
struct Heard {
  std::function<void(const Piece&)> on_piece() {
    return [this](const Piece& piece) {
      const std::lock_guard lock(mutex);
      text += piece.text;
      if (piece.is_last) last = piece;
      changed.notify_all();
    };
  }
  Piece wait_for_last() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return last.has_value(); });
    return *last;
  }
  void wait_for_text() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return !text.empty() || last; });
  }
  bool is_over() {
    const std::lock_guard lock(mutex);
    return last.has_value();
  }
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  std::string text;
  std::optional<Piece> last;
};

GenerateRequest request_of(int32_t token) {
  GenerateRequest request;
  request.prompt = {token};
  return request;
}

/// Looks again and again, for a minute at most.
bool comes_true(const std::function<bool()>& condition) {
  for (int look = 0; look < 60000 && !condition(); ++look) ::usleep(1000);
  return condition();
}

size_t worker_of_one_sequence(const RouterEngine& router) {
  return router.workers()[0].num_sequences == 1 ? 0 : 1;
}

TEST_CASE("a worker that is lost cuts its own answers with a reason, and is replaced") {
  Fleet fleet;
  RouterEngine router(two_workers(), fleet.start());
  Heard cut, spared, next;
  REQUIRE(router.submit(request_of(1), cut.on_piece()));
  cut.wait_for_text();
  const size_t lost = worker_of_one_sequence(router);
  const auto spared_id = router.submit(request_of(2), spared.on_piece());
  REQUIRE(spared_id);
  spared.wait_for_text();
  fleet.kill(lost);
  const Piece last = cut.wait_for_last();
  CHECK(last.finish == Finish::kCancelled);
  CHECK(last.error.find("was lost") != std::string::npos);
  CHECK_FALSE(spared.is_over());
  CHECK(router.is_ready());
  CHECK(comes_true([&] { return router.workers()[lost].is_ready; }));
  CHECK(router.workers()[lost].num_lost == 1);
  REQUIRE(router.submit(request_of(3), next.on_piece()));
  next.wait_for_text();
  CHECK(router.workers()[lost].num_sequences == 1);
  router.cancel(*spared_id);
  const Piece ended = spared.wait_for_last();
  CHECK(ended.finish == Finish::kCancelled);
  CHECK(ended.error.empty());
  CHECK(ended.prompt_tokens == 1);
}

TEST_CASE("what a worker would never take, and what is too much for all, is told at the door") {
  Fleet fleet;
  RouterEngine router(two_workers(), fleet.start());
  CHECK(router.context_length() == 50);
  GenerateRequest longest;
  longest.prompt = tokens_from(0, 50);
  const auto refused = router.submit(longest, [](const Piece&) {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::kRefused);
  std::vector<RequestId> ids;
  std::vector<std::unique_ptr<Heard>> all;
  for (int i = 0; i < 7; ++i) {  // two workers of two each, and three that wait
    all.push_back(std::make_unique<Heard>());
    const auto id = router.submit(request_of(i), all.back()->on_piece());
    REQUIRE(id);
    ids.push_back(*id);
  }
  const auto full = router.submit(request_of(9), [](const Piece&) {});
  REQUIRE_FALSE(full);
  CHECK(full.error().code == ErrorCode::kNoSpace);
  CHECK(std::abs(router.workers()[0].num_sequences - router.workers()[1].num_sequences) == 1);
  for (const RequestId id : ids) router.cancel(id);
  for (const auto& heard : all) heard->wait_for_last();
  CHECK(router.submit(request_of(9), [](const Piece&) {}));
}

TEST_CASE("new weights come worker by worker: an answer ends where it began") {
  Fleet fleet;
  RouterEngine router(two_workers(), fleet.start());
  Heard old;
  const auto id = router.submit(request_of(1), old.on_piece());
  REQUIRE(id);
  old.wait_for_text();
  router.replace_workers();
  CHECK(comes_true([&] { return fleet.num_started() == 4 && router.workers()[1].is_ready; }));
  CHECK(router.is_ready());
  CHECK_FALSE(old.is_over());
  Heard next;
  const auto next_id = router.submit(request_of(2), next.on_piece());
  REQUIRE(next_id);
  next.wait_for_text();
  router.cancel(*id);
  CHECK(old.wait_for_last().error.empty());
  CHECK(router.workers()[0].num_lost + router.workers()[1].num_lost == 0);
  CHECK_FALSE(next.is_over());
}

TEST_CASE("weights that cannot be opened leave the old workers at work") {
  Fleet fleet;
  RouterEngine router(two_workers(), fleet.start());
  fleet.opening_failure = "model.safetensors: cut short";
  router.replace_workers();
  CHECK(
      comes_true([&] { return router.workers()[0].num_lost + router.workers()[1].num_lost > 0; }));
  Heard heard;
  REQUIRE(router.submit(request_of(1), heard.on_piece()));
  heard.wait_for_text();
  CHECK(fleet.num_started() == 3);
}

TEST_CASE("a router whose workers cannot open the model says what they said") {
  Fleet fleet;
  fleet.opening_failure = "model/config.json: not there";
  try {
    const RouterEngine router(two_workers(), fleet.start());
    FAIL("it opened");
  } catch (const Failure& failure) {
    CHECK(std::string(failure.what()) == fleet.opening_failure);
    CHECK(failure.exit_code() == kExitUsage);
  }
}

TEST_CASE("a worker that falls silent is replaced") {
  Fleet fleet;
  fleet.body_of_next = [](int socket) {
    Link link(socket);
    link.send(ReadyMessage{.context_length = 50, .stats = {}});
    link.read([](const Message&) {});  // listens, and never says a word
  };
  RouterOptions options = two_workers();
  options.silence_max_s = 0.5;
  RouterEngine router(options, fleet.start());
  CHECK(comes_true([&] {
    const auto workers = router.workers();
    return workers[0].num_lost + workers[1].num_lost > 0 && workers[0].is_ready &&
           workers[1].is_ready;
  }));
}

TEST_CASE("embeddings come from a worker") {
  Fleet fleet;
  RouterEngine router(two_workers(), fleet.start());
  auto vectors = router.embed({{1, 2, 3}, {4}});
  REQUIRE(vectors);
  CHECK(vectors->size() == 2);
  CHECK((*vectors)[0] == std::vector<float>{0.6F, -0.8F, 3.0F});
}

}  // namespace
}  // namespace pelago::serve
