// Sites that do not fit together, and lines that do not fit the schedule: one clear line, and the
// others are left in peace.
#include <doctest/doctest.h>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

constexpr const char* kThreeSites = R"(
[emulation]
slowdown = 200
[[site]]
name = "a"
[[site.device]]
device = "emulated:a100"
[[site]]
name = "b"
[[site.device]]
device = "emulated:a100"
[[site]]
name = "c"
[[site.device]]
device = "emulated:h20"
[[link]]
between = ["a", "b"]
[[link]]
between = ["b", "c"]
[[link]]
between = ["a", "c"]
)";

TEST_CASE("more sites than fragments train to the end") {
  const Scratch scratch("many-sites");
  prepare(scratch.path());
  write_all(scratch.path() / "three.toml", kThreeSites);
  const Ended ended = run(scratch.path(),
                          train("three.toml",
                                {"--set",
                                 "sites.fragments=1",
                                 "--set",
                                 "sites.combine=trimmed",
                                 "--set",
                                 "train.batch_sequences=9"}));
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(loss_curve(scratch.path() / "runs" / "test", "c").size() == 24);
  const Ended status = run(scratch.path(), {"status", "runs/test", "--json"});
  CHECK(nlohmann::json::parse(status.out)["suspects"].empty());  // honest sites, all of them
}

TEST_CASE("a line slower than the schedule: the plan says what it costs and what would fit") {
  const Scratch scratch("thin-line");
  prepare(scratch.path());
  std::string thin = kTwoSites;
  thin.replace(thin.find("= 200\nrtt"), 5, "= 0.01");
  write_all(scratch.path() / "thin.toml", thin);
  const Ended ended =
      run(scratch.path(), {"plan", "job.toml", "--fleet", "thin.toml", "--no-probe"});
  INFO(ended.out);
  REQUIRE(ended.exit_code == 0);
  CHECK(contains(ended.out, "the line lingang - guizhou needs"));
  CHECK(contains(ended.out, "% of their pace; raise sites.inner_steps to"));
}

TEST_CASE("a site with another tokenizer and dataset is refused by name, the others train") {
  const Scratch scratch("other-data");
  prepare(scratch.path());
  REQUIRE(run(scratch.path(),
              {"data",
               "build",
               "--from",
               "corpus",
               "--glob",
               "*.h",
               "--out",
               "other",
               "--vocab-size",
               "300"})
              .exit_code == 0);
  Program coordinator(
      scratch.path(),
      {"coordinator", "job.toml", "--fleet", "two.toml", "--listen", "127.0.0.1:0"});
  const std::string before = "sites at ";
  REQUIRE(coordinator.wait_for([&] { return contains(coordinator.err_so_far(), before); }, 120));
  const std::string words = coordinator.err_so_far();
  const size_t begin = words.find(before) + before.size();
  const std::string address = words.substr(begin, words.find(';', begin) - begin);
  const auto agent = [&](const std::string& site, const std::string& data) {
    return std::vector<std::string>{"agent",
                                    "--join",
                                    address,
                                    "--token",
                                    "runs/test/tokens/" + site + ".token",
                                    "--run-dir",
                                    "at-" + site,
                                    "--data",
                                    data};
  };
  const Ended refused = run(scratch.path(), agent("guizhou", "other"));  // before any other site
  INFO(refused.err);
  CHECK(refused.exit_code == 2);
  CHECK(contains(refused.err, "tokenizer ("));
  CHECK(contains(refused.err, "dataset ("));
  Program east(scratch.path(), agent("lingang", "data"));
  Program west(scratch.path(), agent("guizhou", "data"));
  const Ended ended = coordinator.wait();
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(east.wait().exit_code == 0);
  CHECK(west.wait().exit_code == 0);
}

}  // namespace
}  // namespace pelago::testing
