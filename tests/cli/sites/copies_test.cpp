// Copies of checkpoints as a person meets them: the disk is gone, the store has them.
#include <doctest/doctest.h>

#include "cli/small_run.h"
#include "sites/copies/s3_server.h"

namespace pelago::testing {
namespace {

ProgramOptions with_account(const S3Server& server) {
  return {.environment = {std::string("AWS_ACCESS_KEY_ID=") + S3Server::kAccessKey,
                          std::string("AWS_SECRET_ACCESS_KEY=") + S3Server::kSecretKey,
                          "AWS_ENDPOINT_URL=" + server.endpoint()},
          .as_nobody = false};
}

std::vector<std::string> copying(const std::string& fleet, const std::vector<std::string>& more) {
  std::vector<std::string> arguments = train(fleet, {"--set", "checkpoint.copy_to=s3://bucket/p"});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

void check_that_it_goes_on_elsewhere(const std::string& fleet, const std::string& site) {
  const Scratch scratch("copies-" + site);
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  S3Server server;
  const Ended whole = run(scratch.path(), copying(fleet, {}), with_account(server));
  INFO(whole.err);
  REQUIRE(whole.exit_code == 0);
  const auto curve = loss_curve(run_dir, site);
  const Ended status = run(scratch.path(), {"status", "runs/test", "--json"});
  const auto copies = nlohmann::json::parse(status.out)["copies"];
  CHECK(copies["copied"].get<int64_t>() >= 1);
  CHECK(copies["failed"] == 0);
  CHECK(copies["newest_step"] == 24);
  CHECK(server.num_bad_signatures == 0);

  fs::remove_all(scratch.path() / "runs");  // the machine is gone, and its last step with it
  const std::string base = "bucket/p/test/" + site + "/latest";
  REQUIRE(server.objects().contains(base));
  const Ended resumed = run(scratch.path(), copying(fleet, {"--resume"}), with_account(server));
  INFO(resumed.err);
  CHECK(resumed.exit_code == 0);
  CHECK(fs::exists(run_dir / "sites" / site / "checkpoints" / "step-24" / "manifest.json"));
  CHECK(fs::exists(run_dir / "model" / "model.safetensors"));
}

TEST_CASE("a run of one site whose folder is gone goes on from its copies") {
  check_that_it_goes_on_elsewhere("one.toml", "room");
}

TEST_CASE("a run of two sites whose folder is gone goes on from their copies") {
  check_that_it_goes_on_elsewhere("two.toml", "guizhou");
}

TEST_CASE("a store that is down costs a warning and a count, and no step") {
  const Scratch scratch("copies-down");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  S3Server server;
  server.is_down = true;
  Program program(scratch.path(), copying("one.toml", {}), with_account(server));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "room", 24); }, 120));
  server.is_down = false;  // before the last copy is given up
  const Ended ended = program.wait();
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(loss_curve(run_dir, "room").size() == 24);
}

TEST_CASE("a job that wants copies without an account is refused before anything is begun") {
  const Scratch scratch("copies-account");
  prepare(scratch.path());
  const Ended refused = run(scratch.path(), copying("one.toml", {}));
  CHECK(refused.exit_code == 2);
  CHECK(contains(refused.err, "AWS_ACCESS_KEY_ID"));
  CHECK(std::count(refused.err.begin(), refused.err.end(), '\n') >= 1);
  const Ended misspelt =
      run(scratch.path(), train("one.toml", {"--set", "checkpoint.copy_to=http://x"}));
  CHECK(misspelt.exit_code == 2);
  CHECK(contains(misspelt.err, "copy_to"));
}

}  // namespace
}  // namespace pelago::testing
