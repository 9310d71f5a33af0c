// `pelago serve --prefill --decode`: prompts are read by one process and answered by another, which
// nobody who asks can tell; and what is said of chips that nobody has.
#include <doctest/doctest.h>

#include <algorithm>

#include "cli/web/served_folder.h"
#include "serve/http/raw_client.h"

namespace pelago::testing {
namespace {

using serve::RawClient;

/// `pelago serve` on the smallest model.
class SmallServer {
 public:
  SmallServer(const fs::path& folder, const std::vector<std::string>& more)
      : program(folder, arguments(more)) {
    const bool is_up = program.wait_for([&] { return program.out_so_far().ends_with("\n"); }, 60);
    INFO(program.err_so_far());
    REQUIRE(is_up);
    said = nlohmann::json::parse(program.out_so_far());
    const std::string url = said["url"];
    port = std::stoi(url.substr(url.rfind(':') + 1));
  }

  std::string get(const std::string& path) const {
    RawClient client(port);
    client.send(
        fmt::format("GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path));
    return client.read_all();
  }
  /// A figure of /metrics; -1 if it is not there.
  int64_t figure(const std::string& name) const {
    const std::string text = get("/metrics");
    const std::string line = fmt::format("\npelago_{} ", name);
    const size_t at = text.find(line);
    return at == std::string::npos ? -1 : std::stoll(text.substr(at + line.size()));
  }
  /// The tokens that the server writes after a prompt, always the likeliest.
  std::string answer(const std::string& prompt) const {
    RawClient client(port);
    client.send(request(prompt, 24, false));
    return tokens_of(client.read_response());
  }
  static std::string tokens_of(const std::string& response) {
    const auto body =
        nlohmann::json::parse(response.substr(response.find("\r\n\r\n") + 4), nullptr, false);
    INFO(response);
    REQUIRE(!body.is_discarded());
    REQUIRE(body.contains("choices"));
    return body["choices"][0]["logprobs"]["tokens"].dump();
  }
  static std::string request(const std::string& prompt, int64_t max_tokens, bool is_stream) {
    const std::string text = nlohmann::json({{"prompt", prompt},
                                             {"max_tokens", max_tokens},
                                             {"temperature", 0},
                                             {"logprobs", 0},
                                             {"ignore_eos", true},
                                             {"stream", is_stream}})
                                 .dump();
    return fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
        text.size(),
        text);
  }

  nlohmann::json said;
  Program program;
  int port = 0;

 private:
  static std::vector<std::string> arguments(const std::vector<std::string>& more) {
    std::vector<std::string> all = {"serve",
                                    "m",
                                    "--port",
                                    "0",
                                    "--json",
                                    "--no-page",
                                    "--kv-memory-gb",
                                    "0.1",
                                    "--context",
                                    "4000",
                                    "--drain",
                                    "0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

std::vector<std::string> some_prompts() {
  std::vector<std::string> prompts;
  for (int idx = 0; idx < 6; ++idx) {
    std::string prompt;
    while (prompt.size() < 300U + 70U * static_cast<size_t>(idx)) {
      prompt += fmt::format("{} sheep, ", idx * 17 + static_cast<int>(prompt.size()));
    }
    prompts.push_back(prompt);
  }
  return prompts;
}

std::vector<std::string> answers(const SmallServer& server) {
  std::vector<std::string> all;
  for (const std::string& prompt : some_prompts()) all.push_back(server.answer(prompt));
  return all;
}

/// The processes in this folder that read prompts.
std::vector<pid_t> readers_in(const fs::path& folder) {
  const auto readers = processes_with("serve-prefill");
  std::vector<pid_t> found;
  for (const pid_t pid : processes_in(folder)) {
    if (std::ranges::find(readers, pid) != readers.end()) found.push_back(pid);
  }
  return found;
}

pid_t pid_of_worker(const SmallServer& server, int worker_idx = 0) {
  const std::string text = server.get("/metrics");
  const std::string line = fmt::format("\npelago_worker_pid{{worker=\"{}\"}} ", worker_idx);
  const size_t at = text.find(line);
  return at == std::string::npos ? pid_t{-1}
                                 : static_cast<pid_t>(std::stoi(text.substr(at + line.size())));
}

/// Folders where a worker met the process that reads for it.
int meeting_places_of(pid_t pid) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(fs::temp_directory_path())) {
    const std::string name = entry.path().filename();
    count += name.starts_with(fmt::format("pelago-split-{}-", pid)) ? 1 : 0;
  }
  return count;
}

/// Kills the process that reads while it has prompts to read: nobody's answer ends or is another,
/// and a new one reads later prompts.
void lose_reader(SmallServer& split,
                 const fs::path& folder,
                 const std::vector<std::string>& expected) {
  const auto has_said = [&](const char* words) {
    return split.program.err_so_far().find(words) != std::string::npos;
  };
  CHECK(split.figure("prefill_sides") == 1);
  CHECK(split.figure("prefill_sides_up") == 1);
  CHECK(split.figure("prefill_restarts_total") == 0);
  const std::vector<pid_t> readers = readers_in(folder);
  REQUIRE(readers.size() == 1);
  ::kill(readers[0], SIGSTOP);  // so that it surely dies over what it is sent now
  const auto more = [](size_t idx) { return fmt::format("{} and ", idx) + some_prompts()[idx]; };
  std::vector<std::unique_ptr<RawClient>> clients;
  for (size_t idx = 0; idx < expected.size(); ++idx) {
    clients.push_back(std::make_unique<RawClient>(split.port));
    clients.back()->send(SmallServer::request(more(idx), 24, false));
  }
  // What waits has been sent there: the decode side has room for all.
  REQUIRE(split.program.wait_for([&] { return split.figure("requests_waiting") > 0; }, 60));
  ::kill(readers[0], SIGKILL);
  for (size_t idx = 0; idx < expected.size(); ++idx) {
    CHECK(SmallServer::tokens_of(clients[idx]->read_response()) == expected[idx]);
  }
  const auto is_gone = [&] { return !fs::exists(fmt::format("/proc/{}", readers[0])); };
  CHECK(split.program.wait_for(is_gone, 60));
  CHECK(has_said("prefill side lost"));
  CHECK(has_said(fmt::format("prefill side ended pid={}", readers[0]).c_str()));
  CHECK(has_said("how=\"was killed by signal 9 (Killed)\""));

  // Figures are those of the worker's last beat.
  const auto is_back = [&] {
    return split.figure("prefill_restarts_total") == 1 && split.figure("prefill_sides_up") == 1;
  };
  CHECK(split.program.wait_for(is_back, 60));
  CHECK(has_said("prefill side is back"));
  const std::vector<pid_t> now = readers_in(folder);
  REQUIRE(now.size() == 1);
  CHECK(now != readers);
  const int64_t num_before = split.figure("prompts_read_elsewhere_total");
  // None that was asked before: what is remembered is not sent away.
  for (size_t idx = 0; idx < expected.size(); ++idx) split.answer("new " + more(idx));
  CHECK(split.program.wait_for(
      [&] { return split.figure("prompts_read_elsewhere_total") > num_before; }, 60));
  CHECK(split.figure("worker_lost_total{worker=\"0\"}") == 0);
}

TEST_CASE("a split answers as one device does, whatever becomes of its sides") {
  const Scratch scratch("serve-split");
  write_served_folder(scratch.path() / "m");
  std::vector<std::string> expected, in_flight;
  {
    SmallServer one(scratch.path(), {"--device", "cpu"});
    expected = answers(one);
    for (size_t idx = 0; idx < expected.size(); ++idx) {
      in_flight.push_back(one.answer(fmt::format("{} and ", idx) + some_prompts()[idx]));
    }
    one.program.signal(SIGTERM);
    one.program.wait();
  }
  SmallServer split(scratch.path(), {"--prefill", "emulated:910b", "--decode", "emulated:h20"});
  const auto num_read = [&] { return split.figure("prompts_read_elsewhere_total"); };
  CHECK(split.said["prefill"] == "emulated:910b");
  CHECK(split.said["decode"] == "emulated:h20");
  CHECK(answers(split) == expected);
  CHECK(split.program.wait_for([&] { return num_read() > 0; }, 60));
  CHECK(processes_in(scratch.path()).size() == 3);

  lose_reader(split, scratch.path(), in_flight);

  // Without the side that writes: an error event, and both sides anew.
  RawClient cut(split.port);
  cut.send(SmallServer::request(some_prompts()[1], 3500, true));
  cut.read_until("data: ");
  const pid_t killed = pid_of_worker(split);
  REQUIRE(killed > 0);
  ::kill(killed, SIGKILL);
  const std::string broken = cut.read_all();
  CHECK(broken.find("the worker that computed this answer was lost") != std::string::npos);
  CHECK(broken.find("[DONE]") == std::string::npos);
  const auto is_back = [&] {
    return split.get("/ready").starts_with("HTTP/1.1 200") && pid_of_worker(split) != killed;
  };
  CHECK(split.program.wait_for(is_back, 60));
  CHECK(meeting_places_of(killed) == 0);
  CHECK(meeting_places_of(pid_of_worker(split)) == 1);
  const int64_t num_before = num_read();
  CHECK(answers(split) == expected);
  CHECK(split.program.wait_for([&] { return num_read() > num_before; }, 60));
  split.program.signal(SIGKILL);
  split.program.wait();
  for (int tenths = 0; tenths < 600 && !processes_in(scratch.path()).empty(); ++tenths) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  CHECK(processes_in(scratch.path()).empty());
}

bool maps_shared_weights(pid_t pid) {
  return read_all(fmt::format("/proc/{}/maps", pid)).find("memfd:pelago-weights") !=
         std::string::npos;
}

TEST_CASE("workers that share their weights answer as one does, those that come later too") {
  const Scratch scratch("serve-shared");
  write_served_folder(scratch.path() / "m");
  std::vector<std::string> expected;
  {
    SmallServer one(scratch.path(), {});
    expected = answers(one);
    CHECK_FALSE(maps_shared_weights(one.program.pid()));
    one.program.signal(SIGTERM);
    one.program.wait();
  }
  SmallServer two(scratch.path(), {"--workers", "2", "--share-weights"});
  CHECK(answers(two) == expected);
  for (const int idx : {0, 1}) CHECK(maps_shared_weights(pid_of_worker(two, idx)));
  for (const int idx : {0, 1}) {
    const pid_t killed = pid_of_worker(two, idx);
    REQUIRE(killed > 0);
    ::kill(killed, SIGKILL);
    const auto is_back = [&] {
      const pid_t now = pid_of_worker(two, idx);
      return now > 0 && now != killed && maps_shared_weights(now) &&
             two.get("/metrics").find(fmt::format("worker_up{{worker=\"{}\"}} 1", idx)) !=
                 std::string::npos;
    };
    CHECK(two.program.wait_for(is_back, 60));
  }
  CHECK(answers(two) == expected);
  two.program.signal(SIGTERM);
  CHECK(two.program.wait().exit_code == 0);
}

void write_config(const fs::path& folder, int num_layers) {
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"model_type", "llama"},
                                 {"head_dim", 128},
                                 {"hidden_act", "silu"},
                                 {"hidden_size", 4096},
                                 {"intermediate_size", 11008},
                                 {"max_position_embeddings", 4096},
                                 {"num_attention_heads", 32},
                                 {"num_hidden_layers", num_layers},
                                 {"num_key_value_heads", 32},
                                 {"rms_norm_eps", 1e-6},
                                 {"rope_theta", 1e4},
                                 {"tie_word_embeddings", false},
                                 {"torch_dtype", "bfloat16"},
                                 {"eos_token_id", 2},
                                 {"vocab_size", 32000}};
  write_all(folder / "config.json", config.dump());
}

TEST_CASE("the plan of a split says which chip reads for which, and what it gains") {
  const Scratch scratch("serve-plan");
  write_config(scratch.path() / "7b", 32);
  const std::vector<std::string> command = {
      "serve", "7b", "--plan", "emulated:910b=8,emulated:h20=8", "--link-gbit", "1600"};
  const Ended table = run(scratch.path(), command);
  INFO(table.err);
  CHECK(table.exit_code == 0);
  for (const char* part : {"8 x Ascend 910B2", "8 x H20", "each doing both", "ratio"}) {
    CAPTURE(part);
    CHECK(table.out.find(part) != std::string::npos);
  }
  std::vector<std::string> as_json = command;
  as_json.insert(as_json.end(), {"--json", "--answer-tokens", "128"});
  const Ended said = run(scratch.path(), as_json);
  REQUIRE(said.exit_code == 0);
  const auto json = nlohmann::json::parse(said.out);
  CHECK(json["answer_tokens"] == 128);
  CHECK(json["flows"][0]["prefill"] == "huawei-910b2");
  CHECK(json["flows"][0]["decode"] == "nvidia-h20");
  double shares = 0;
  for (const auto& flow : json["flows"]) shares += flow["share"].get<double>();
  CHECK(shares == doctest::Approx(1));
  const auto low = [&](const char* name) { return json[name][0].get<double>(); };
  CHECK(low("ratio") == doctest::Approx(low("requests_s") / low("each_both_requests_s")));
  CHECK(low("ratio") > 1.1);
}

TEST_CASE("what cannot be split or planned for is one line that names it") {
  const Scratch scratch("serve-split-bad");
  write_served_folder(scratch.path() / "m");
  write_served_folder(scratch.path() / "large");
  write_config(scratch.path() / "large", 2000);
  const auto check = [&](const std::vector<std::string>& arguments, const std::string& named) {
    const Ended ended = run(scratch.path(), arguments);
    INFO(ended.err);
    CHECK(ended.exit_code == 2);
    CHECK(ended.err.find(named) != std::string::npos);
    CHECK(std::ranges::count(ended.err, '\n') == 1);
  };
  check({"serve", "m", "--plan", "h20,h21"}, "h21");
  check({"serve", "m", "--plan", "h20=0"}, "--plan h20=0: write CHIP=NUMBER");
  check({"serve", "m", "--plan", "h20=1.5"}, "--plan h20=1.5: write CHIP=NUMBER");
  check({"serve", "m", "--plan", "h20=2,nvidia-h20"}, "stands there twice");
  check({"serve", "large", "--plan", "h20"}, "none of the chips can hold the model's");
  check({"serve", "nowhere", "--plan", "h20"}, "nowhere");
  const auto split = [&](const std::string& prefill, const std::string& decode) {
    return std::vector<std::string>{
        "serve", "m", "--port", "0", "--prefill", prefill, "--decode", decode};
  };
  check(split("gpu7", "cpu"), "device \"gpu7\" is unknown");
  check(split("cpu", "cpu"), "both name cpu");
  auto with_workers = split("cpu", "emulated:h20");
  with_workers.insert(with_workers.end(), {"--workers", "2"});
  check(with_workers, "leave --workers out");
  // A process of its own finds out that there is no room; what it says is heard.
  auto too_large = split("cpu", "emulated:h20");
  too_large[1] = "large";
  const Ended ended = run(scratch.path(), too_large);
  INFO(ended.err);
  CHECK(ended.exit_code == 2);
  CHECK(ended.err.find("device emulated:h20: the model's") != std::string::npos);
}

}  // namespace
}  // namespace pelago::testing
