// An agent's two ends of a checkpoint that goes from site to site (checkpoint_fetcher.h): it gives
// away what lies in its folder, and has what it fetches put there.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "sites/across/checkpoint_fetcher.h"
#include "sites/protocol/member/member_actions.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

/// What a donor answers. An empty payload: it has no such piece, or another checkpoint of that
/// step.
CheckpointPiece piece_of(const std::filesystem::path& checkpoints_dir, const FetchPiece& wanted);

/// A checkpoint under its temporary name until it is whole.
class CheckpointFolder final : public CheckpointSink {
 public:
  /// keep: newest checkpoints that stay. Throws Failure if the folder cannot be made.
  CheckpointFolder(std::filesystem::path checkpoints_dir, int64_t step, int64_t keep);
  ~CheckpointFolder() override;
  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;
  void write(const std::string& file, int64_t offset, const std::string& bytes) override;
  std::string finish() override;

 private:
  std::filesystem::path checkpoints_dir_, temporary_;
  int64_t step_, keep_;
};

class CheckpointExchange {
 public:
  struct Options {
    std::string site;
    std::filesystem::path checkpoints_dir;
    int64_t keep = 3;
  };
  /// transport outlives the exchange.
  CheckpointExchange(Options options, Transport& transport);

  /// Whether there is something to fetch before these workers can start. Then take_ready() has them
  /// later.
  bool begin(const StartWorkers& start, double now_s);
  /// Whether the message was of this.
  bool take(const std::string& from, const Message& message, double now_s);
  /// Throws Failure if nobody can give the checkpoint.
  void tick(double now_s);
  struct Ready {
    StartWorkers start;
    int64_t num_bytes = 0;  // that were fetched
    double took_s = 0;
  };
  std::optional<Ready> take_ready(double now_s);

 private:
  void send(CheckpointFetcher::Requests requests);

  Options options_;
  Transport* transport_;
  std::optional<StartWorkers> start_;  // until it is fetched
  double begun_s_ = 0;
  std::unique_ptr<CheckpointFolder> folder_;
  std::unique_ptr<CheckpointFetcher> fetcher_;
};

}  // namespace pelago::sites
