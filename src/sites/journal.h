// What the coordinator must not forget: every commit and every change of membership, on disk before
// anyone hears of it. A person can ask it what happened with any SQLite client.
//   rounds(exchange, epoch, members, tokens, hash, committed_unix_s)
//   events(at_unix_s, name, fields)
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sites/protocol/messages.h"

namespace pelago::sites {

struct JournalRound {
  int64_t exchange = 0;
  int64_t epoch = 0;
  std::string members;  // "lingang,guizhou"
  std::string tokens;   // "4096,2048", in the order of members
  std::string hash;
};

class Journal {
 public:
  /// Opens or makes the file (write-ahead log, forced to disk at every commit). Throws Failure
  /// naming the file and the reason.
  explicit Journal(const std::filesystem::path& path);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  /// On disk when this returns ok. A resumed run commits exchanges again that it had lost: the
  /// newer record replaces the older. kNoSpace: the disk is full; the record waits in memory and is
  /// written, in its turn, with the next one that finds room. Throws Failure.
  Status record_commit(const Commit& commit);
  Status record_event(const std::string& name, const std::string& fields_json);
  /// Forgets commits at or past this exchange: the run goes back to before it.
  void forget_from(int64_t exchange);
  std::vector<JournalRound> rounds() const;
  std::optional<JournalRound> last_round() const;
  int64_t num_events() const;

 private:
  struct Database;
  std::unique_ptr<Database> database_;
};

}  // namespace pelago::sites
