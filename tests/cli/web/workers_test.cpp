// `pelago serve --workers`: a worker that dies takes only its own answers with it, and is replaced;
// a router that dies leaves no worker.
#include <doctest/doctest.h>

#include <mutex>

#include "cli/web/served_folder.h"
#include "serve/http/raw_client.h"

namespace pelago::testing {
namespace {

using serve::RawClient;

std::string completion_of(const std::string& prompt, int64_t max_tokens, bool is_stream) {
  const nlohmann::json body = {{"prompt", prompt},
                               {"max_tokens", max_tokens},
                               {"seed", 7},
                               {"ignore_eos", true},
                               {"stream", is_stream}};
  const std::string text = body.dump();
  return fmt::format(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
      text.size(),
      text);
}

/// The texts of a stream's events that are whole, one after another.
std::string texts_of(const std::string& stream) {
  constexpr std::string_view kField = "\"text\":\"";
  std::string all;
  for (size_t at = 0; (at = stream.find(kField, at)) != std::string::npos;) {
    at += kField.size();
    const size_t end = stream.find("\",\"logprobs\"", at);
    if (end == std::string::npos) break;
    all += stream.substr(at, end - at);
  }
  return all;
}

/// Asks for an endless answer and reads it all the time, since a client that does not is cut.
class EndlessStream {
 public:
  EndlessStream(int port, const std::string& prompt) : client_(port) {
    client_.send(completion_of(prompt, 190000, true));
    thread_ = std::jthread([this](const std::stop_token& stop) {
      for (size_t from = 0; !stop.stop_requested();) {
        const std::string& seen = client_.read_until("\n\n", from);
        const bool is_over = seen.find("\n\n", from) == std::string::npos;
        from = seen.size();
        const std::lock_guard lock(mutex_);
        seen_.append(seen, seen_.size());
        if (is_over) return;
      }
    });
  }
  std::string seen() {
    const std::lock_guard lock(mutex_);
    return seen_;
  }
  std::string all() {
    thread_.join();
    return seen();
  }

 private:
  RawClient client_;
  std::mutex mutex_;  // guards seen_
  std::string seen_;
  std::jthread thread_;  // last: it uses everything above
};

/// `pelago serve --workers 2` on the smallest model.
class TwoWorkers {
 public:
  explicit TwoWorkers(const fs::path& folder)
      : program((write_served_folder(folder / "m"), folder),
                {"serve",
                 "m",
                 "--workers",
                 "2",
                 "--port",
                 "0",
                 "--json",
                 "--no-page",
                 "--kv-memory-gb",
                 "0.2",
                 "--drain",
                 "0"}) {
    REQUIRE(program.wait_for([&] { return program.out_so_far().ends_with("\n"); }, 60));
    const std::string url = nlohmann::json::parse(program.out_so_far())["url"];
    port = std::stoi(url.substr(url.rfind(':') + 1));
  }

  /// pelago_NAME{worker="IDX"} of /metrics.
  int64_t figure(const std::string& name, int worker_idx) const {
    RawClient client(port);
    client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    const std::string text = client.read_all();
    const std::string line = fmt::format("pelago_{}{{worker=\"{}\"}} ", name, worker_idx);
    const size_t at = text.find(line);
    return at == std::string::npos ? -1 : std::stoll(text.substr(at + line.size()));
  }
  bool wait_for(const std::function<bool()>& ready) { return program.wait_for(ready, 60); }

  Program program;
  int port = 0;
};

TEST_CASE("a worker killed in mid-answer ends its answer with an error and no other, and is back") {
  const Scratch scratch("serve-workers");
  TwoWorkers server(scratch.path());
  EndlessStream cut(server.port, "this one will be cut");
  REQUIRE(server.wait_for([&] { return texts_of(cut.seen()).size() > 20; }));
  const int killed = server.figure("worker_sequences", 0) == 1 ? 0 : 1;
  EndlessStream spared(server.port, "and this one will not");
  REQUIRE(server.wait_for([&] { return texts_of(spared.seen()).size() > 20; }));
  REQUIRE(server.figure("worker_sequences", 1 - killed) == 1);

  const auto pid = static_cast<pid_t>(server.figure("worker_pid", killed));
  REQUIRE(pid > 0);
  ::kill(pid, SIGKILL);
  const std::string broken = cut.all();
  INFO(broken.substr(broken.size() > 600 ? broken.size() - 600 : 0));
  CHECK(broken.find("the worker that computed this answer was lost") != std::string::npos);
  CHECK(broken.find("[DONE]") == std::string::npos);

  RawClient next(server.port);
  next.send(completion_of("who is there?", 4, false));
  CHECK(next.read_response().starts_with("HTTP/1.1 200"));
  CHECK(server.wait_for([&] { return server.figure("worker_up", killed) == 1; }));
  CHECK(server.figure("worker_pid", killed) != pid);
  CHECK(server.figure("worker_lost_total", killed) == 1);

  const size_t num_then = texts_of(spared.seen()).size();
  REQUIRE(server.wait_for([&] { return texts_of(spared.seen()).size() > num_then + 100; }));
  const std::string text = texts_of(spared.seen());
  CHECK(server.figure("worker_lost_total", 1 - killed) == 0);
  EndlessStream again(server.port, "and this one will not");
  REQUIRE(server.wait_for([&] { return texts_of(again.seen()).size() >= text.size(); }));
  CHECK(texts_of(again.seen()).substr(0, text.size()) == text);

  // However a router ends, its workers end with it.
  CHECK(processes_in(scratch.path()).size() == 3);
  server.program.signal(SIGKILL);
  server.program.wait();
  for (int tenths = 0; tenths < 600 && !processes_in(scratch.path()).empty(); ++tenths) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  CHECK(processes_in(scratch.path()).empty());
}

}  // namespace
}  // namespace pelago::testing
