// A run small enough for a test: a corpus that a small model can learn a little of, a job, two
// fleets.
#pragma once

#include "cli/program.h"
#include "cli/small_model.h"

namespace pelago::testing {

/// A corpus of text that a small model can learn a little of, and a job over it.
inline void write_corpus(const fs::path& folder) {
  uint64_t state = 7;
  for (int file = 0; file < 60; ++file) {
    std::string text;
    for (int line = 0; line < 60; ++line) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const auto draw = static_cast<unsigned>(state >> 33);
      text += fmt::format(
          "static inline int field_{}(const struct node *n) {{ return n->value[{}] + {}; }}\n",
          draw % 97,
          draw % 13,
          file);
    }
    write_all(folder / "corpus" / fmt::format("part_{}.h", file), text);
  }
}

inline const std::string kJob = R"(
name = "test"
)" + std::string(kSmallModel) + R"([data]
dir = "data"
sequence_length = 32
[train]
steps = 24
batch_sequences = 8
microbatch_sequences = 4
lr = 2e-3
warmup_steps = 4
eval_every_steps = 12
eval_sequences = 8
checkpoint_every_steps = 8
[sites]
inner_steps = 8
fragments = 2
overlap_steps = 1
)";

inline const char* kOneSite = R"(
[emulation]
slowdown = 200
[[site]]
name = "room"
[[site.device]]
device = "emulated:a100"
[[site.device]]
device = "emulated:h20"
)";

inline const char* kTwoSites = R"(
[emulation]
slowdown = 200
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:a100"
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:910b"
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 200
rtt_ms = 5
emulate = true
)";

/// `pelago train` of prepare()'s job. --no-probe: a plan from the catalogue is the same every time,
/// a measured one is not.
inline std::vector<std::string> train(const std::string& fleet,
                                      const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {"train", "job.toml", "--fleet", fleet, "--no-probe"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// Whether a site has done so many steps.
inline bool reached(const fs::path& run, const std::string& site, size_t step) {
  return fs::exists(run / "metrics.jsonl") && loss_curve(run, site).size() >= step;
}

/// How often a site has joined.
inline int num_joins(const fs::path& run, const std::string& site) {
  int count = 0;
  std::ifstream events(run / "events.jsonl");
  for (std::string line; std::getline(events, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const bool is_join = !json.is_discarded() && json.value("event", "") == "site_joined";
    count += is_join && json.value("site", "") == site ? 1 : 0;
  }
  return count;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A folder with a corpus, its dataset in data/, job.toml, one.toml and two.toml.
inline void prepare(const fs::path& folder) {
  write_corpus(folder);
  write_all(folder / "job.toml", kJob);
  write_all(folder / "one.toml", kOneSite);
  write_all(folder / "two.toml", kTwoSites);
  const Ended built = run(folder,
                          {"data",
                           "build",
                           "--from",
                           "corpus",
                           "--glob",
                           "*.h",
                           "--out",
                           "data",
                           "--vocab-size",
                           "400"});
  if (built.exit_code != 0) throw std::runtime_error("pelago data build: " + built.err);
}

}  // namespace pelago::testing
