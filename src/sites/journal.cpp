#include "sites/journal.h"

#include <sqlite3.h>

#include <chrono>
#include <deque>

#include "base/error.h"

namespace pelago::sites {

namespace {

double unix_now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

constexpr const char* kSchema = R"sql(
  PRAGMA journal_mode = WAL;
  PRAGMA synchronous = FULL;
  CREATE TABLE IF NOT EXISTS rounds (
    exchange INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, members TEXT NOT NULL,
    tokens TEXT NOT NULL, data TEXT NOT NULL, hash TEXT NOT NULL,
    committed_unix_s REAL NOT NULL);
  CREATE TABLE IF NOT EXISTS events (
    at_unix_s REAL NOT NULL, name TEXT NOT NULL, fields TEXT NOT NULL);
  CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
)sql";

/// A prepared statement, finalised when it goes.
class Statement {
 public:
  Statement(sqlite3* handle, const char* sql) {
    if (sqlite3_prepare_v2(handle, sql, -1, &statement_, nullptr) != SQLITE_OK) {
      fail("journal: {}", sqlite3_errmsg(handle));
    }
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  void bind(int idx, int64_t value) { sqlite3_bind_int64(statement_, idx, value); }
  void bind(int idx, double value) { sqlite3_bind_double(statement_, idx, value); }
  void bind(int idx, const std::string& value) {
    sqlite3_bind_text(
        statement_, idx, value.data(), static_cast<int>(value.size()), SQLITE_TRANSIENT);
  }
  int step() { return sqlite3_step(statement_); }
  int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string text(int column) const {
    const unsigned char* text = sqlite3_column_text(statement_, column);
    return text == nullptr ? "" : reinterpret_cast<const char*>(text);
  }

 private:
  sqlite3_stmt* statement_ = nullptr;
};

/// Rows that go in together.
struct Batch {
  double at_unix_s = 0;
  std::vector<StateWrite> writes;
  std::vector<Commit> commits;
  std::vector<std::pair<std::string, std::string>> events;  // name, fields
};

int insert_commit(sqlite3* handle, const Commit& commit, double at_unix_s) {
  std::string members, tokens, data;
  for (const MemberShare& member : commit.members) {
    const char* comma = members.empty() ? "" : ",";
    members += comma + member.site;
    tokens += comma + std::to_string(member.tokens);
    data += fmt::format("{}{}-{}", comma, member.data_begin, member.data_end);
  }
  Statement insert(handle,
                   "INSERT OR REPLACE INTO rounds (exchange, epoch, members, tokens, data, hash, "
                   "committed_unix_s) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
  insert.bind(1, commit.exchange);
  insert.bind(2, commit.epoch);
  insert.bind(3, members);
  insert.bind(4, tokens);
  insert.bind(5, data);
  insert.bind(6, commit.hash);
  insert.bind(7, at_unix_s);
  return insert.step();
}

int insert_event(sqlite3* handle, const std::string& name, const std::string& fields, double at) {
  Statement insert(handle, "INSERT INTO events VALUES (?1, ?2, ?3)");
  insert.bind(1, at);
  insert.bind(2, name);
  insert.bind(3, fields);
  return insert.step();
}

int insert_state(sqlite3* handle, const StateWrite& write) {
  if (!write.value.empty()) {
    Statement insert(handle, "INSERT OR REPLACE INTO state VALUES (?1, ?2)");
    insert.bind(1, write.key);
    insert.bind(2, write.value);
    return insert.step();
  }
  Statement round(handle, "DELETE FROM rounds WHERE 'commit/' || exchange = ?1");
  round.bind(1, write.key);
  if (const int code = round.step(); code != SQLITE_DONE) return code;
  Statement state(handle, "DELETE FROM state WHERE key = ?1");
  state.bind(1, write.key);
  return state.step();
}

DurableState select_state(sqlite3* handle) {
  DurableState state;
  Statement select(handle, "SELECT key, value FROM state");
  while (select.step() == SQLITE_ROW) state[select.text(0)] = select.text(1);
  return state;
}

int insert_batch(sqlite3* handle, const Batch& batch) {
  const auto run = [&](const char* sql) {
    return sqlite3_exec(handle, sql, nullptr, nullptr, nullptr);
  };
  int code = run("BEGIN IMMEDIATE");
  if (code != SQLITE_OK) return code;
  code = SQLITE_DONE;
  for (const StateWrite& write : batch.writes) {
    if (code == SQLITE_DONE) code = insert_state(handle, write);
  }
  for (const Commit& commit : batch.commits) {
    if (code == SQLITE_DONE) code = insert_commit(handle, commit, batch.at_unix_s);
  }
  for (const auto& [name, fields] : batch.events) {
    if (code == SQLITE_DONE) code = insert_event(handle, name, fields, batch.at_unix_s);
  }
  if (code == SQLITE_DONE) code = run("COMMIT");
  // What a full disk has not undone by itself must not be left half done.
  if (code != SQLITE_OK && sqlite3_get_autocommit(handle) == 0) run("ROLLBACK");
  return code;
}

}  // namespace

struct Journal::Database {
  sqlite3* handle = nullptr;
  std::string path;
  std::deque<Batch> waiting;  // not on disk yet; empty on a healthy machine

  ~Database() { sqlite3_close(handle); }
  void check(int code) const;
  Status write_waiting();
};

void Journal::Database::check(int code) const {
  if (code == SQLITE_OK || code == SQLITE_DONE || code == SQLITE_ROW) return;
  fail("{}: cannot keep the journal: {}; free the disk or choose another run folder",
       path,
       sqlite3_errmsg(handle));
}

Status Journal::Database::write_waiting() {
  for (; !waiting.empty(); waiting.pop_front()) {
    const int code = insert_batch(handle, waiting.front());
    // Growing the index of the write-ahead log on a full disk reads as an I/O error.
    if (const int kind = code & 0xff; kind == SQLITE_FULL || kind == SQLITE_IOERR) {
      return Error{ErrorCode::kNoSpace,
                   fmt::format("{}: cannot be written: {}; free some space on that disk",
                               path,
                               sqlite3_errmsg(handle))};
    }
    check(code);
  }
  return ok();
}

Journal::Journal(const std::filesystem::path& path) : database_(std::make_unique<Database>()) {
  database_->path = path.string();
  database_->check(sqlite3_open(path.c_str(), &database_->handle));
  database_->check(sqlite3_exec(database_->handle, kSchema, nullptr, nullptr, nullptr));
  // A journal begun before rounds told their data gets the column; any other has it already.
  (void)sqlite3_exec(database_->handle,
                     "ALTER TABLE rounds ADD COLUMN data TEXT NOT NULL DEFAULT ''",
                     nullptr,
                     nullptr,
                     nullptr);
}

Journal::~Journal() = default;

Status Journal::record_commit(const Commit& commit) { return record({}, {commit}, {}); }

Status Journal::record_event(const std::string& name, const std::string& fields_json) {
  return record({}, {}, {{name, fields_json}});
}

Status Journal::write(const std::vector<StateWrite>& writes) { return record(writes, {}, {}); }

Status Journal::record(const std::vector<StateWrite>& writes,
                       const std::vector<Commit>& commits,
                       const std::vector<std::pair<std::string, std::string>>& events) {
  if (!writes.empty() || !commits.empty() || !events.empty()) {
    database_->waiting.push_back(
        {.at_unix_s = unix_now_s(), .writes = writes, .commits = commits, .events = events});
  }
  return database_->write_waiting();
}

DurableState Journal::load() { return select_state(database_->handle); }

DurableState read_journal_state(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return {};
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &handle, SQLITE_OPEN_READONLY, nullptr);
  const std::unique_ptr<sqlite3, int (*)(sqlite3*)> owner(handle, &sqlite3_close);
  if (code != SQLITE_OK) fail("{}: cannot be read: {}", path.string(), sqlite3_errmsg(handle));
  return select_state(handle);
}

std::vector<JournalRound> Journal::rounds() const {
  Statement select(
      database_->handle,
      "SELECT exchange, epoch, members, tokens, data, hash FROM rounds ORDER BY exchange");
  std::vector<JournalRound> rounds;
  while (select.step() == SQLITE_ROW) {
    rounds.push_back({.exchange = select.integer(0),
                      .epoch = select.integer(1),
                      .members = select.text(2),
                      .tokens = select.text(3),
                      .data = select.text(4),
                      .hash = select.text(5)});
  }
  return rounds;
}

std::optional<JournalRound> Journal::last_round() const {
  const std::vector<JournalRound> all = rounds();
  return all.empty() ? std::nullopt : std::optional(all.back());
}

int64_t Journal::num_events() const {
  Statement select(database_->handle, "SELECT count(*) FROM events");
  select.step();
  return select.integer(0);
}

}  // namespace pelago::sites
