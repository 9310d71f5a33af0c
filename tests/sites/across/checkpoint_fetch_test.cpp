// A checkpoint that goes from one site in step to another, piece by piece.
#include <doctest/doctest.h>

#include <deque>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "sites/across/checkpoint_exchange.h"
#include "train/checkpoint.h"

namespace pelago::sites {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kStep = 20;

/// Checkpoint folders of sites under one that goes when it goes.
class Disks {
 public:
  explicit Disks(const std::string& name) : root_(fs::temp_directory_path() / ("pelago-" + name)) {
    fs::remove_all(root_);
  }
  ~Disks() { fs::remove_all(root_); }
  fs::path of(const std::string& site) const { return root_ / site / "checkpoints"; }
  fs::path step(const std::string& site) const { return train::checkpoint_path(of(site), kStep); }
  /// A checkpoint of several pieces.
  void save(const std::string& site, const std::string& mark) const {
    const fs::path folder = train::begin_checkpoint(of(site), kStep);
    train::TrainState state;
    state.step = kStep;
    write_file(folder / "state.json", train::to_json(state));
    write_file(folder / "weights.safetensors", std::string(3 * kCheckpointPieceBytes, 'w') + mark);
    write_file(folder / "empty", "");
    REQUIRE(train::finish_checkpoint(of(site), kStep, 3));
  }
  std::string hash(const std::string& site) const {
    return hash_hex(read_text_file(step(site) / kCheckpointManifest));
  }

 private:
  fs::path root_;
};

/// Fetches for site b in virtual time; lost: of answers, by their number.
std::string fetch(const Disks& disks,
                  CheckpointFetcher& fetcher,
                  const std::function<bool(int64_t answer)>& lost) {
  int64_t num_answers = 0;
  for (double now_s = 0; now_s < 1000; now_s += 0.1) {
    std::deque<std::pair<std::string, FetchPiece>> asked;
    const auto ask = [&](CheckpointFetcher::Requests requests) {
      asked.insert(asked.end(), requests.begin(), requests.end());
    };
    ask(fetcher.on_tick(now_s));
    while (!asked.empty()) {
      const auto [donor, wanted] = asked.front();
      asked.pop_front();
      const CheckpointPiece piece = piece_of(disks.of(donor), wanted);
      if (!lost(num_answers++)) ask(fetcher.on_piece(donor, piece, now_s));
    }
    if (fetcher.is_done()) return "";
    if (!fetcher.failure().empty()) return fetcher.failure();
  }
  return "no end";
}

TEST_CASE("a checkpoint is fetched whole though answers are lost, and counts once it is whole") {
  const Disks disks("fetch-lossy");
  disks.save("a", "x");
  CheckpointFolder folder(disks.of("b"), kStep, 3);
  CheckpointFetcher fetcher({.step = kStep, .hash = disks.hash("a"), .donors = {"a"}}, folder);
  CHECK(fetch(disks, fetcher, [&](int64_t answer) {
          CHECK_FALSE(fs::exists(disks.step("b")));
          return answer % 3 == 0;
        }) == "");
  CHECK(train::verify_checkpoint(disks.step("b")) == "");
  CHECK(disks.hash("b") == disks.hash("a"));
  CHECK(read_text_file(disks.step("b") / "weights.safetensors") ==
        read_text_file(disks.step("a") / "weights.safetensors"));
}

TEST_CASE("of two who should have a checkpoint the other is asked where one is damaged or gone") {
  const Disks disks("fetch-next");
  disks.save("a", "x");
  disks.save("c", "x");
  // As long as before, and not what the manifest says.
  write_file(disks.step("a") / "weights.safetensors",
             std::string(3 * kCheckpointPieceBytes + 1, 'v'));
  CheckpointFolder folder(disks.of("b"), kStep, 3);
  CheckpointFetcher fetcher({.step = kStep, .hash = disks.hash("c"), .donors = {"gone", "a", "c"}},
                            folder);
  CHECK(fetch(disks, fetcher, [](int64_t) { return false; }) == "");
  CHECK(disks.hash("b") == disks.hash("c"));
  CHECK(read_text_file(disks.step("b") / "weights.safetensors") ==
        read_text_file(disks.step("c") / "weights.safetensors"));
}

TEST_CASE("a checkpoint that nobody has as it must be is not taken, and all are named") {
  const Disks disks("fetch-none");
  disks.save("a", "other");
  disks.save("c", "x");
  const std::string hash = disks.hash("c");
  fs::remove_all(disks.step("c"));
  {
    CheckpointFolder folder(disks.of("b"), kStep, 3);
    CheckpointFetcher fetcher({.step = kStep, .hash = hash, .donors = {"a", "c"}}, folder);
    CHECK(fetch(disks, fetcher, [](int64_t) { return false; }) ==
          "the checkpoint of step 20 cannot be fetched from site a, c: it has it no more");
  }
  CHECK_FALSE(fs::exists(disks.step("b")));
  CHECK(fs::is_empty(disks.of("b")));
}

TEST_CASE("nothing is given away but files of a checkpoint") {
  const Disks disks("fetch-paths");
  disks.save("a", "x");
  write_file(disks.of("a") / "secret", "key");
  FetchPiece wanted{.step = kStep, .hash = disks.hash("a"), .file = "state.json"};
  CHECK_FALSE(piece_of(disks.of("a"), wanted).payload.empty());
  for (const char* file : {"../secret", "", "..", ".", "/etc/passwd", "none"}) {
    CAPTURE(file);
    wanted.file = file;
    CHECK(piece_of(disks.of("a"), wanted).payload.empty());
  }
  wanted = {.step = kStep, .hash = disks.hash("a"), .file = "state.json", .offset = 1 << 30};
  CHECK(piece_of(disks.of("a"), wanted).payload.empty());
  wanted = {.step = kStep, .hash = "other", .file = "state.json"};
  CHECK(piece_of(disks.of("a"), wanted).payload.empty());
}

}  // namespace
}  // namespace pelago::sites
