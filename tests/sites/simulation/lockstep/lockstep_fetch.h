// A checkpoint of a simulated site in step as it travels: two small files, by the real messages.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "sites/across/checkpoint_fetcher.h"
#include "sites/protocol/member/member_actions.h"

namespace pelago::sites {

struct SavedInStep {
  int64_t tokens = 0;
  uint64_t hash = 0;
};

/// By name, as the files of a real one.
std::map<std::string, std::string> files_of(const SavedInStep& saved);
/// As a site offers it.
std::string hash_of(const SavedInStep& saved);

/// What comes of a checkpoint, and the start that waits for it.
class FetchedInStep final : public CheckpointSink {
 public:
  explicit FetchedInStep(const StartWorkers& given);
  void write(const std::string& file, int64_t offset, const std::string& bytes) override;
  std::string finish() override;
  const SavedInStep& saved() const { return saved_; }

  StartWorkers start;
  CheckpointFetcher fetcher;

 private:
  std::map<std::string, std::string> files_;
  SavedInStep saved_;
};

}  // namespace pelago::sites
