// Everything a person can get wrong: one clear line, an exit code that says whose turn it is,
// nothing lost.
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <functional>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

struct Case {
  std::string name;
  std::vector<std::string> arguments;
  int exit_code;
  std::vector<std::string> said;  // each must stand in the one line
  std::function<void(const fs::path&)> spoil = [](const fs::path&) {};
};

std::string edited(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

void edit_file(const fs::path& path, const std::string& from, const std::string& to) {
  write_all(path, edited(read_all(path), from, to));
}

const std::vector<std::string> kTrain = train("one.toml");

std::vector<Case> corpus_cases() {
  return {
      {"a missing folder of text",
       {"data", "build", "--from", "nowhere", "--out", "d"},
       2,
       {"nowhere"}},
      {"an empty folder of text",
       {"data", "build", "--from", "empty", "--out", "d"},
       2,
       {"empty"},
       [](const fs::path& p) { fs::create_directories(p / "empty"); }},
      {"a corpus smaller than one sequence",
       train("one.toml", {"--set", "data.sequence_length=100000"}),
       2,
       {"sequence", "100000"}},
      {"a dataset that is not there",
       train("one.toml", {"--set", "data.dir=nodata"}),
       2,
       {"nodata"}},
      {"a truncated shard",
       kTrain,
       1,
       {"train-00000.bin"},
       [](const fs::path& p) {
         const fs::path shard = p / "data" / "train-00000.bin";
         fs::resize_file(shard, fs::file_size(shard) / 2);
       }},
      {"a damaged shard",
       kTrain,
       1,
       {"train-00000.bin"},
       [](const fs::path& p) {
         const fs::path shard = p / "data" / "train-00000.bin";
         std::string bytes = read_all(shard);
         bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
         write_all(shard, bytes);
       }},
      {"the tokenizer of another corpus",
       kTrain,
       1,
       {"tokenizer"},
       [](const fs::path& p) {
         write_all(p / "other" / "x.h", std::string(30000, 'q') + read_all(p / "job.toml"));
         const Ended built = run(p,
                                 {"data",
                                  "build",
                                  "--from",
                                  "corpus",
                                  "--glob",
                                  "part_1*.h",
                                  "--out",
                                  "data2",
                                  "--vocab-size",
                                  "300"});
         REQUIRE(built.exit_code == 0);
         fs::copy_file(p / "data2" / "tokenizer.json",
                       p / "data" / "tokenizer.json",
                       fs::copy_options::overwrite_existing);
       }},
  };
}

std::vector<Case> config_cases() {
  return {
      {"an unknown chip",
       kTrain,
       2,
       {"a1000"},
       [](const fs::path& p) { edit_file(p / "one.toml", "emulated:a100", "emulated:a1000"); }},
      {"a link to no site",
       {"train", "job.toml", "--fleet", "two.toml"},
       2,
       {"nowhere"},
       [](const fs::path& p) { edit_file(p / "two.toml", "\"guizhou\"]", "\"nowhere\"]"); }},
      {"two sites of one name",
       {"train", "job.toml", "--fleet", "two.toml"},
       2,
       {"lingang"},
       [](const fs::path& p) {
         edit_file(p / "two.toml", "name = \"guizhou\"", "name = \"lingang\"");
       }},
      {"a mistyped key",
       kTrain,
       2,
       {"wramup_steps", "warmup_steps"},
       [](const fs::path& p) { edit_file(p / "job.toml", "warmup_steps", "wramup_steps"); }},
      {"a mistyped key in --set",
       train("one.toml", {"--set", "train.bacth_sequences=4"}),
       2,
       {"bacth_sequences", "batch_sequences"}},
      {"a job file that is not there",
       {"train", "nojob.toml", "--fleet", "one.toml"},
       2,
       {"nojob.toml"}},
      {"a model larger than the chip's memory",
       train("one.toml", {"--set", "emulation.memory_gib=0.001"}),
       2,
       {"GiB"}},
      {"an emulated fleet faster than the host",
       {"train", "job.toml", "--fleet", "one.toml", "--set", "emulation.slowdown=0.01"},
       2,
       {"slowdown"}},
      {"--resume without a run", train("one.toml", {"--resume"}), 2, {"runs/test"}},
      {"--resume and --fresh together",
       train("one.toml", {"--resume", "--fresh"}),
       2,
       {"--resume"}},
      {"a run folder that exists",
       kTrain,
       2,
       {"--resume", "--fresh"},
       [](const fs::path& p) { write_all(p / "runs" / "test" / "job.toml", ""); }},
      {"an unknown command", {"trian"}, 2, {"trian"}},
      {"an unknown option", {"train", "--fleat", "x"}, 2, {"pelago --help"}},
      {"a model folder that is none", {"generate", "nomodel", "--prompt", "x"}, 2, {"nomodel"}},
      {"a status of no run", {"status", "nowhere"}, 2, {"nowhere"}},
      {"a temperature below zero",
       {"generate", "nomodel", "--prompt", "x", "--temperature", "-1"},
       2,
       {"temperature", "-1"}},
  };
}

void check(const std::vector<Case>& cases) {
  const Scratch pristine("pristine");
  prepare(pristine.path());
  for (const Case& each : cases) {
    INFO(each.name);
    const Scratch scratch("bad");
    fs::copy(pristine.path(),
             scratch.path(),
             fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    each.spoil(scratch.path());
    const Ended ended = run(scratch.path(), each.arguments);
    INFO(ended.err);
    CHECK(ended.exit_code == each.exit_code);
    const size_t at = ended.err.rfind("pelago: ");
    REQUIRE(at != std::string::npos);
    const std::string line = ended.err.substr(at);
    CHECK(std::count(line.begin(), line.end(), '\n') == 1);  // one line, the last
    for (const std::string& part : each.said) {
      INFO(part);
      CHECK(line.find(part) != std::string::npos);
    }
    CHECK(processes_in(scratch.path()).empty());
  }
}

/// A socket that listens on a port of its own.
class TakenPort {
 public:
  TakenPort() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* any = reinterpret_cast<sockaddr*>(&address);
    REQUIRE(::bind(socket_, any, length) == 0);
    REQUIRE(::listen(socket_, 1) == 0);
    REQUIRE(::getsockname(socket_, any, &length) == 0);
    port_ = ntohs(address.sin_port);
  }
  TakenPort(const TakenPort&) = delete;
  TakenPort& operator=(const TakenPort&) = delete;
  ~TakenPort() { ::close(socket_); }
  std::string address() const { return fmt::format("127.0.0.1:{}", port_); }

 private:
  int socket_;
  int port_ = 0;
};

TEST_CASE("a port that is taken is named, the coordinator's as well as a site's") {
  const TakenPort port;
  check({{"the coordinator's port",
          train("two.toml", {"--listen", port.address()}),
          2,
          {"coordinator", port.address(), "taken"}},
         {"a site's port",
          train("two.toml"),
          2,
          {"guizhou", port.address(), "taken"},
          [&](const fs::path& p) {
            edit_file(p / "two.toml",
                      "name = \"guizhou\"",
                      fmt::format("name = \"guizhou\"\nlisten = \"{}\"", port.address()));
          }}});
}

TEST_CASE("a run that no plan fits leaves no run folder in the way of the next try") {
  const Scratch scratch("no-plan");
  prepare(scratch.path());
  const Ended refused =
      run(scratch.path(), train("one.toml", {"--set", "emulation.memory_gib=0.001"}));
  CHECK(refused.exit_code == 2);
  CHECK_FALSE(fs::exists(scratch.path() / "runs" / "test"));
}

TEST_CASE("files that cannot be read are named and left out, unless they were asked for by name") {
  const Scratch scratch("unreadable");
  write_corpus(scratch.path());
  fs::permissions(scratch.path() / "corpus" / "part_7.h", fs::perms::none);
  fs::create_symlink("nowhere", scratch.path() / "corpus" / "dangling.h");
  fs::permissions(scratch.path(), fs::perms::all);
  const ProgramOptions nobody{.as_nobody = true};
  if (run(scratch.path(), {"--version"}, nobody).exit_code != 0) {
    MESSAGE("skipped: needs root, to become nobody, and a program that nobody may start");
    return;
  }
  const std::vector<std::string> build = {
      "data", "build", "--from", "corpus", "--glob", "*.h", "--out", "d", "--json"};
  const Ended built = run(scratch.path(), build, nobody);
  INFO(built.err);
  REQUIRE(built.exit_code == 0);
  CHECK(nlohmann::json::parse(built.out)["unreadable"] == 2);
  CHECK(contains(built.err, "corpus/part_7.h"));
  CHECK(contains(built.err, "Permission denied"));
  CHECK(contains(built.err, "corpus/dangling.h"));
  const Ended named =
      run(scratch.path(), {"data", "build", "--from", "corpus/part_7.h", "--out", "e"}, nobody);
  CHECK(named.exit_code == 1);
  CHECK(contains(named.err, "corpus/part_7.h: cannot open: Permission denied"));
  CHECK(half_made(scratch.path()).empty());
}

TEST_CASE("every command tells by example how it is used") {
  const Scratch scratch("help");
  const std::string help = run(scratch.path(), {"--help"}).out;
  const size_t list = help.find("Subcommands:");
  REQUIRE(list != std::string::npos);
  std::istringstream lines(help.substr(list));
  std::string line;
  size_t num_commands = 0;
  for (std::getline(lines, line); std::getline(lines, line) && line.starts_with("  ");) {
    const std::string name = line.substr(2, line.find(' ', 2) - 2);
    if (name.empty()) continue;  // the second line of a long description
    INFO(name);
    const Ended ended = run(scratch.path(), {name, "--help"});
    CHECK(ended.exit_code == 0);
    const size_t examples = ended.out.find("Examples:");
    REQUIRE(examples != std::string::npos);
    CHECK(ended.out.find("pelago " + name, examples) != std::string::npos);
    ++num_commands;
  }
  CHECK(num_commands >= 9);
}

TEST_CASE("bad text, bad datasets: one line that names the thing, and an exit code") {
  check(corpus_cases());
}

TEST_CASE("bad jobs, fleets and options: one line that names the thing, and an exit code") {
  check(config_cases());
}

}  // namespace
}  // namespace pelago::testing
