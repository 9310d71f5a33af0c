// Everything a person can get wrong: one clear line, an exit code that says whose turn it is,
// nothing lost.
#include <doctest/doctest.h>

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

const std::vector<std::string> kTrain = {"train", "job.toml", "--fleet", "one.toml", "--no-probe"};

std::vector<std::string> train_with(std::vector<std::string> more) {
  std::vector<std::string> arguments = kTrain;
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

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
       train_with({"--set", "data.sequence_length=100000"}),
       2,
       {"sequence", "100000"}},
      {"a dataset that is not there", train_with({"--set", "data.dir=nodata"}), 2, {"nodata"}},
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
       train_with({"--set", "train.bacth_sequences=4"}),
       2,
       {"bacth_sequences", "batch_sequences"}},
      {"a job file that is not there",
       {"train", "nojob.toml", "--fleet", "one.toml"},
       2,
       {"nojob.toml"}},
      {"a model larger than the chip's memory",
       train_with({"--set", "emulation.memory_gib=0.002"}),
       2,
       {"GiB"}},
      {"an emulated fleet faster than the host",
       {"train", "job.toml", "--fleet", "one.toml", "--set", "emulation.slowdown=0.01"},
       2,
       {"slowdown"}},
      {"--resume without a run", train_with({"--resume"}), 2, {"runs/test"}},
      {"--resume and --fresh together", train_with({"--resume", "--fresh"}), 2, {"--resume"}},
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

TEST_CASE("bad text, bad datasets: one line that names the thing, and an exit code") {
  check(corpus_cases());
}

TEST_CASE("bad jobs, fleets and options: one line that names the thing, and an exit code") {
  check(config_cases());
}

}  // namespace
}  // namespace pelago::testing
