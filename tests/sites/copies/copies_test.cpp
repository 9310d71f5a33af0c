// Copies of checkpoints in an S3 store that fails in every way it can.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/files.h"
#include "base/rng.h"
#include "sites/copies/checkpoint_copier.h"
#include "sites/copies/s3_server.h"
#include "train/checkpoint.h"
#include "train/scratch_folder.h"

namespace pelago::sites {
namespace {

namespace fs = std::filesystem;
using testing::S3Server;

S3Options store_at(const S3Server& server) {
  S3Options store;
  store.place = parse_s3_place("s3://bucket/deep/er");
  store.account = {.access_key = S3Server::kAccessKey,
                   .secret_key = S3Server::kSecretKey,
                   .session_token = {},
                   .region = "eu-central-1",
                   .endpoint = server.endpoint()};
  store.first_pause_s = 0.001;
  store.pause_max_s = 0.004;
  store.connect_s = 1;
  store.stall_s = 1;
  store.part_bytes = 4096;
  return store;
}

std::string random_bytes(size_t num_bytes, uint64_t seed) {
  Rng rng(seed);
  std::string bytes(num_bytes, '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng.next_below(256));
  return bytes;
}

/// A site's checkpoint folders, filled with bytes instead of weights.
class SiteFolders {
 public:
  explicit SiteFolders(const std::string& name) : scratch_("copies-" + name) {}
  const fs::path& checkpoints() const { return scratch_.path(); }

  void save(int64_t step, size_t num_bytes = 10'000) const {
    const fs::path dir = train::begin_checkpoint(checkpoints(), step);
    write_file(dir / "weights.safetensors", random_bytes(num_bytes, static_cast<uint64_t>(step)));
    train::TrainState state;
    state.step = state.data_step = step;
    write_file(dir / "state.json", train::to_json(state));
    REQUIRE(train::finish_checkpoint(checkpoints(), step, 3));
  }
  std::string weights(int64_t step) const {
    return read_text_file(train::checkpoint_path(checkpoints(), step) / "weights.safetensors");
  }

 private:
  train::ScratchFolder scratch_;
};

CopierOptions copier_of(const S3Server& server, const SiteFolders& site, int64_t start_step = 0) {
  return {.store = store_at(server),
          .run = "job 1",
          .site = "lingang",
          .checkpoints_dir = site.checkpoints(),
          .plan_path = {},
          .keep = 3,
          .start_step = start_step};
}

std::vector<int64_t> steps_in(const CopierOptions& options) {
  const auto copies = find_copies(options);
  REQUIRE(copies);
  std::vector<int64_t> steps;
  if (!*copies) return steps;
  for (const CheckpointOffer& offer : (*copies)->checkpoints) steps.push_back(offer.step);
  return steps;
}

/// Offers one and waits; returns the names of the events.
std::string copy(CheckpointCopier& copier, int64_t step) {
  copier.offer(step);
  REQUIRE(copier.finish(60));
  std::string names;
  for (const auto& [name, fields] : copier.take_events()) names += name + " ";
  return names;
}

TEST_CASE("what was copied comes back bit for bit on a machine that has nothing") {
  S3Server server;
  const SiteFolders here("here"), elsewhere("elsewhere");
  here.save(8);
  CheckpointCopier copier(copier_of(server, here));
  CHECK(copy(copier, 8) == "checkpoint_copied ");
  CHECK(server.num_bad_signatures == 0);
  CHECK(server.objects().contains("bucket/deep/er/job_1/lingang/step-8/manifest.json"));

  const CopierOptions there = copier_of(server, elsewhere);
  CHECK(steps_in(there) == std::vector<int64_t>{8});
  const Status fetched = fetch_copy(there, 8);
  REQUIRE(fetched);
  CHECK(train::good_checkpoints(elsewhere.checkpoints()) == std::vector<int64_t>{8});
  CHECK((elsewhere.weights(8) == here.weights(8)));
}

TEST_CASE("large files go up in parts, and no upload is left open") {
  S3Server server;
  const SiteFolders site("parts");
  site.save(8, 40'000);  // ten parts
  CheckpointCopier copier(copier_of(server, site));
  server.refuse_503 = 3;
  CHECK(copy(copier, 8) == "checkpoint_copied ");
  const auto objects = server.objects();
  CHECK((objects.at("bucket/deep/er/job_1/lingang/step-8/weights.safetensors") == site.weights(8)));
  CHECK(server.num_open_uploads() == 0);
  CHECK(server.num_bad_signatures == 0);
}

TEST_CASE("an upload whose completion was carried out and not answered is done") {
  S3Server server;
  const SiteFolders site("completion");
  site.save(8, 40'000);
  CheckpointCopier copier(copier_of(server, site));
  server.lose_completion = 1;
  CHECK(copy(copier, 8) == "checkpoint_copied ");
  CHECK(server.lose_completion == 0);
  CHECK(server.num_open_uploads() == 0);
}

TEST_CASE("503, broken connections and lost answers are tried again until it is done") {
  S3Server server;
  const SiteFolders site("faults");
  site.save(8, 20'000);
  CheckpointCopier copier(copier_of(server, site));
  server.refuse_503 = 2;
  server.break_before = 2;
  copier.offer(8);
  REQUIRE(copier.finish(60));
  const auto events = copier.take_events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].first == "checkpoint_copied");
  CHECK(nlohmann::json::parse(events[0].second).at("retries") == 4);

  site.save(16, 3000);
  server.break_after = 1;  // of the small file or of "latest": carried out, and not answered
  CHECK(copy(copier, 16) == "checkpoint_copied ");
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{8, 16});

  const SiteFolders elsewhere("faults-elsewhere");
  server.break_answers = 3;
  REQUIRE(fetch_copy(copier_of(server, elsewhere), 16));
  CHECK((elsewhere.weights(16) == site.weights(16)));
}

TEST_CASE("an answer that gets lost when latest has moved does not move it twice or back") {
  S3Server server;
  const SiteFolders site("lost-answer");
  site.save(8);
  CheckpointCopier copier(copier_of(server, site));
  server.before_condition([&] { server.break_after = 1; });
  CHECK(copy(copier, 8) == "checkpoint_copied ");
  CHECK(server.num_lost_races == 1);  // against itself
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{8});
}

TEST_CASE("a store that stays down costs one warning, and the next checkpoint is tried again") {
  S3Server server;
  const SiteFolders site("down");
  for (const int64_t step : {8, 16, 24}) site.save(step);
  CheckpointCopier copier(copier_of(server, site));
  server.is_down = true;
  CHECK(copy(copier, 8) == "checkpoint_copy_failed warning ");
  CHECK(copy(copier, 16) == "checkpoint_copy_failed ");
  server.is_down = false;
  CHECK(copy(copier, 24) == "checkpoint_copied ");
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{24});
}

TEST_CASE("a store that answers nothing is given up, and whoever ends does not wait for it") {
  S3Server server;
  const SiteFolders site("silent");
  site.save(8);
  server.is_silent = true;
  const double begin_s = steady_now_s();
  {
    CheckpointCopier copier(copier_of(server, site));
    copier.offer(8);
    CHECK_FALSE(copier.finish(0.05));
  }
  CHECK(steady_now_s() - begin_s < 20);  // silence ends a transfer after 30
}

TEST_CASE("a race that is lost never moves latest back") {
  S3Server server;
  const SiteFolders site("race"), other_site("race-other");
  site.save(8);
  other_site.save(16);
  CheckpointCopier slow(copier_of(server, site));
  // Between the slow one's reading and its writing, a writer of the same course is faster.
  CheckpointCopier fast(copier_of(server, other_site));
  server.before_condition([&] {
    fast.offer(16);
    CHECK(fast.finish(20));
  });
  CHECK(copy(slow, 8) == "checkpoint_copied ");  // its bytes are there, nothing names them
  CHECK(server.num_lost_races == 1);
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{16});
}

TEST_CASE(
    "a run that went back is a new course: its steps replace later ones, and not vice versa") {
  S3Server server;
  const SiteFolders site("course");
  for (const int64_t step : {80, 90}) site.save(step);
  CheckpointCopier first(copier_of(server, site));
  CHECK(copy(first, 80) == "checkpoint_copied ");
  CHECK(copy(first, 90) == "checkpoint_copied ");
  CheckpointCopier goes_on(copier_of(server, site, /*start_step=*/90));
  site.save(100);
  CHECK(copy(goes_on, 100) == "checkpoint_copied ");
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{80, 90, 100});

  const SiteFolders again("course-again");
  again.save(10);
  CheckpointCopier second(copier_of(server, again, /*start_step=*/0));
  CHECK(copy(second, 10) == "checkpoint_copied ");
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{10});
  const auto objects = server.objects();
  CHECK_FALSE(objects.contains("bucket/deep/er/job_1/lingang/step-90/manifest.json"));
  site.save(110);
  CHECK(copy(goes_on, 110) == "checkpoint_copy_failed warning ");  // it does not know that it ended
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{10});
}

TEST_CASE("as many copies stay as are kept") {
  S3Server server;
  const SiteFolders site("keep");
  CheckpointCopier copier(copier_of(server, site));
  for (int64_t step = 8; step <= 40; step += 8) {
    site.save(step);
    CHECK(copy(copier, step) == "checkpoint_copied ");
  }
  CHECK(steps_in(copier_of(server, site)) == std::vector<int64_t>{24, 32, 40});
  const auto objects = server.objects();
  CHECK(objects.size() == 1 + 3 * 3);  // latest, and three files each
}

TEST_CASE("wrong credentials are refused once, with the store's word and without the secret") {
  S3Server server;
  const SiteFolders site("credentials");
  site.save(8);
  CopierOptions options = copier_of(server, site);
  options.store.account.secret_key = "guessed";
  CheckpointCopier copier(options);
  copier.offer(8);
  REQUIRE(copier.finish(60));
  const auto events = copier.take_events();
  REQUIRE(events.size() == 2);
  CHECK(events[1].second.find("403 SignatureDoesNotMatch") != std::string::npos);
  CHECK(events[1].second.find("guessed") == std::string::npos);
  CHECK(server.num_requests == 1);
}

TEST_CASE("a damaged copy, a manifest that names a path, and no index are refused by name") {
  S3Server server;
  const SiteFolders site("damaged"), elsewhere("damaged-elsewhere");
  site.save(8);
  CheckpointCopier copier(copier_of(server, site));
  REQUIRE(copy(copier, 8) == "checkpoint_copied ");
  const std::string base = "bucket/deep/er/job_1/lingang/";
  const auto objects = server.objects();
  std::string bytes = objects.at(base + "step-8/weights.safetensors");
  bytes[77] = static_cast<char>(bytes[77] ^ 1);
  server.set_object(base + "step-8/weights.safetensors", bytes);
  const CopierOptions there = copier_of(server, elsewhere);
  const Status damaged = fetch_copy(there, 8);
  REQUIRE_FALSE(damaged);
  CHECK(damaged.error().message.find("weights.safetensors is damaged") != std::string::npos);

  server.set_object(base + "step-8/manifest.json",
                    R"({"format":1,"files":{"../../x":{"bytes":3,"xxh3_128":"0"}}})");
  const Status named = fetch_copy(there, 8);
  REQUIRE_FALSE(named);
  CHECK(named.error().message.find("../../x") != std::string::npos);
  CHECK(fs::is_empty(elsewhere.checkpoints()));  // nothing half-made stays

  server.set_object(base + "latest", "<html>");
  const auto index = find_copies(there);
  REQUIRE_FALSE(index);
  CHECK(index.error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a place that cannot be one is refused by name") {
  CHECK(parse_s3_place("s3://bucket").prefix.empty());
  CHECK(parse_s3_place("s3://my-bucket/a/b/").prefix == "a/b");
  for (const char* wrong : {"bucket/a",
                            "s3://",
                            "s3://ab",
                            "s3://Bucket",
                            "s3://bucket/a b",
                            "s3://bucket/a//b",
                            "s3://bucket/../other",
                            "s3://bucket/%2e"}) {
    CAPTURE(wrong);
    CHECK_THROWS_WITH_AS(parse_s3_place(wrong), doctest::Contains("checkpoint.copy_to"), Failure);
  }
}

TEST_CASE("an account comes from the usual variables, and a missing one is named") {
  ::unsetenv("AWS_SECRET_ACCESS_KEY");
  ::setenv("AWS_ACCESS_KEY_ID", "key", 1);
  CHECK_THROWS_WITH_AS(
      account_from_environment(), doctest::Contains("AWS_SECRET_ACCESS_KEY"), Failure);
  ::setenv("AWS_SECRET_ACCESS_KEY", "secret", 1);
  ::setenv("AWS_ENDPOINT_URL", "http://store:9000/", 1);
  ::setenv("AWS_DEFAULT_REGION", "cn-east", 1);
  const S3Account account = account_from_environment();
  CHECK(account.endpoint == "http://store:9000");
  CHECK(account.region == "cn-east");
  CHECK(url_of(parse_s3_place("s3://bucket/p"), account, "k/l") ==
        "http://store:9000/bucket/p/k/l");
  for (const char* name :
       {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}) {
    ::unsetenv(name);
  }
}

}  // namespace
}  // namespace pelago::sites
