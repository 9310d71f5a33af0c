// What the coordinator must not forget: every commit and every change of membership, on disk before
// anyone hears of it. A person can ask it what happened with any SQLite client.
//   rounds(exchange, epoch, members, tokens, hash, committed_unix_s)
//   events(at_unix_s, name, fields)
//   state(key, value)     what the next coordinator goes on from (state/state_store.h)
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sites/protocol/messages.h"
#include "sites/state/state_store.h"

namespace pelago::sites {

struct JournalRound {
  int64_t exchange = 0;
  int64_t epoch = 0;
  std::string members;  // "lingang,guizhou"
  std::string tokens;   // "4096,2048", in the order of members
  std::string data;     // "0-40,8-40": the data steps in each delta, in the order of members
  std::string hash;
};

/// The state in a journal, which another process may be writing. Empty if there is no journal.
/// Throws Failure if it cannot be read.
DurableState read_journal_state(const std::filesystem::path& path);

class Journal final : public StateStore {
 public:
  /// Opens or makes the file (write-ahead log, forced to disk at every commit). Throws Failure
  /// naming the file and the reason.
  explicit Journal(const std::filesystem::path& path);
  ~Journal() override;
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  /// On disk when this returns ok. A resumed run commits exchanges again that it had lost: the
  /// newer record replaces the older. kNoSpace: the disk is full; the record waits in memory and is
  /// written, in its turn, with the next one that finds room. Throws Failure.
  Status record_commit(const Commit& commit);
  Status record_event(const std::string& name, const std::string& fields_json);
  /// A commit whose state is forgotten leaves the rounds too.
  DurableState load() override;
  Status write(const std::vector<StateWrite>& writes) override;
  /// All that one event led to, in one transaction.
  Status record(const std::vector<StateWrite>& writes,
                const std::vector<Commit>& commits,
                const std::vector<std::pair<std::string, std::string>>& events);
  std::vector<JournalRound> rounds() const;
  std::optional<JournalRound> last_round() const;
  int64_t num_events() const;

 private:
  struct Database;
  std::unique_ptr<Database> database_;
};

}  // namespace pelago::sites
