#include "base/config.h"

#include <doctest/doctest.h>

#include "base/error.h"

namespace pelago {
namespace {

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Failure& failure) {
    CHECK(failure.exit_code() == kExitUsage);
    return failure.what();
  }
  return "";
}

TEST_CASE("an absent key leaves the default and a present one replaces it") {
  const auto table = ConfigTable::parse("[train]\nlr = 1\nname = 'x'\n", "job.toml");
  double lr = 3e-4, decay = 0.1;
  std::string name;
  table.table("train").read("lr", lr);
  table.table("train").read("decay", decay);
  table.table("train").read("name", name);
  CHECK(lr == 1.0);
  CHECK(decay == 0.1);
  CHECK(name == "x");
}

TEST_CASE("an unknown key is refused with its line and the nearest known key") {
  const auto table = ConfigTable::parse("[train]\nlr = 1\nwramup_steps = 3\n", "job.toml");
  const auto train = table.table("train");
  double lr = 0;
  int64_t warmup = 0;
  train.read("lr", lr);
  train.read("warmup_steps", warmup);
  const std::string message = message_of([&] { table.refuse_unknown(); });
  CHECK(message == "job.toml:3: unknown key train.wramup_steps; did you mean warmup_steps?");
}

TEST_CASE("an unknown key inside an array of tables is refused too") {
  const auto table = ConfigTable::parse("[[site]]\nname='a'\n[[site]]\nnmae='b'\n", "fleet.toml");
  for (const auto& site : table.tables("site")) {
    std::string name;
    site.read("name", name);
  }
  CHECK(message_of([&] { table.refuse_unknown(); }).find("did you mean name?") != std::string::npos);
}

TEST_CASE("a wrong type names the key, the value and what is wanted") {
  const auto table = ConfigTable::parse("steps = 'many'\n", "job.toml");
  int64_t steps = 0;
  const std::string message = message_of([&] { table.read("steps", steps); });
  CHECK(message.find("steps = 'many' must be a whole number") != std::string::npos);
}

TEST_CASE("--set reaches into sections, makes them, and takes a bare word for a string") {
  auto table = ConfigTable::parse("[train]\nlr = 1\n", "job.toml");
  table.set("train.lr=2e-3");
  table.set("train.schedule=wsd");
  table.set("sites.fragments=8");
  double lr = 0;
  std::string schedule;
  int fragments = 0;
  table.table("train").read("lr", lr);
  table.table("train").read("schedule", schedule);
  table.table("sites").read("fragments", fragments);
  CHECK(lr == 2e-3);
  CHECK(schedule == "wsd");
  CHECK(fragments == 8);
  CHECK(message_of([&] { table.set("nonsense"); }).find("--set nonsense") != std::string::npos);
}

TEST_CASE("text that is not TOML names file and line") {
  CHECK(message_of([] { ConfigTable::parse("a = 1\nb = = 2\n", "x.toml"); }).rfind("x.toml:2:", 0) == 0);
}

}  // namespace
}  // namespace pelago
