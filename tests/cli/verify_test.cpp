// pelago verify, with two kinds of device in two processes.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/program.h"

namespace pelago::testing {
namespace {

Ended verify(const std::vector<std::string>& more) {
  const Scratch scratch("verify");
  std::vector<std::string> arguments = {"verify", "--preset", "1m", "--tokens", "32"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run(scratch.path(), arguments);
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("an emulated chip agrees with the CPU, and every part of the model is in the table") {
  const Ended ended = verify({"--device", "cpu", "--device", "emulated:a100", "--json"});
  CAPTURE(ended.err);
  REQUIRE(ended.exit_code == 0);
  const nlohmann::json rows = nlohmann::json::parse(ended.out);
  for (const char* part : {"operator", "loss", "gradient", "step"}) {
    CAPTURE(part);
    CHECK(std::ranges::any_of(rows, [&](const auto& row) { return row["part"] == part; }));
  }
  for (const auto& row : rows) CHECK(row["verdict"] == "ok");
}

TEST_CASE("a wrong element is found, its operator named, and the exit code says so") {
  const Ended ended =
      verify({"--device", "cpu", "--device", "emulated:a100", "--fault", "wrong@p=1,seed=1"});
  CHECK(ended.exit_code == 1);
  CHECK(has(ended.out, "FAIL"));
  CHECK(has(ended.err, "cpu and emulated:a100 disagree in aten::mm"));
}

TEST_CASE("a chip that composes its operators of libtorch's agrees with kernels of ours") {
  ::setenv("TORCH_NPU_INSTALL_PREFIX", FAKE_PLUGINS "/good", 1);
  const Ended ended = verify({"--device", "npu:0", "--device", "cpu", "--json"});
  CAPTURE(ended.err);
  REQUIRE(ended.exit_code == 0);
  for (const auto& row : nlohmann::json::parse(ended.out)) {
    CAPTURE(row.dump());
    CHECK(row["verdict"] == "ok");
  }
}

TEST_CASE("a device that cannot be opened is named with its reason") {
  const Ended ended = verify({"--device", "cpu", "--device", "musa:0"});
  CHECK(ended.exit_code == 1);
  CHECK(has(ended.err, "musa:0"));
  CHECK(has(ended.err, "libmusa_python.so"));
}

TEST_CASE("one device is not enough to compare") {
  const Ended ended = verify({"--device", "cpu"});
  CHECK(ended.exit_code == 2);
  CHECK(has(ended.err, "two devices, not 1"));
}

}  // namespace
}  // namespace pelago::testing
