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
    tokens TEXT NOT NULL, hash TEXT NOT NULL, committed_unix_s REAL NOT NULL);
  CREATE TABLE IF NOT EXISTS events (
    at_unix_s REAL NOT NULL, name TEXT NOT NULL, fields TEXT NOT NULL);
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

/// One row to be; which table it belongs to is told by its commit.
struct Record {
  double at_unix_s = 0;
  std::optional<Commit> commit;
  std::string name, fields_json;  // of an event

  int insert(sqlite3* handle) const;
};

int Record::insert(sqlite3* handle) const {
  if (!commit) {
    Statement insert(handle, "INSERT INTO events VALUES (?1, ?2, ?3)");
    insert.bind(1, at_unix_s);
    insert.bind(2, name);
    insert.bind(3, fields_json);
    return insert.step();
  }
  std::string members, tokens;
  for (const MemberShare& member : commit->members) {
    const char* comma = members.empty() ? "" : ",";
    members += comma + member.site;
    tokens += comma + std::to_string(member.tokens);
  }
  Statement insert(handle, "INSERT OR REPLACE INTO rounds VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
  insert.bind(1, commit->exchange);
  insert.bind(2, commit->epoch);
  insert.bind(3, members);
  insert.bind(4, tokens);
  insert.bind(5, commit->hash);
  insert.bind(6, at_unix_s);
  return insert.step();
}

}  // namespace

struct Journal::Database {
  sqlite3* handle = nullptr;
  std::string path;
  std::deque<Record> waiting;  // not on disk yet; empty on a healthy machine

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
    const int code = waiting.front().insert(handle);
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
}

Journal::~Journal() = default;

Status Journal::record_commit(const Commit& commit) {
  database_->waiting.push_back(
      {.at_unix_s = unix_now_s(), .commit = commit, .name = {}, .fields_json = {}});
  return database_->write_waiting();
}

Status Journal::record_event(const std::string& name, const std::string& fields_json) {
  database_->waiting.push_back(
      {.at_unix_s = unix_now_s(), .commit = {}, .name = name, .fields_json = fields_json});
  return database_->write_waiting();
}

void Journal::forget_from(int64_t exchange) {
  Statement remove(database_->handle, "DELETE FROM rounds WHERE exchange >= ?1");
  remove.bind(1, exchange);
  database_->check(remove.step());
}

std::vector<JournalRound> Journal::rounds() const {
  Statement select(database_->handle,
                   "SELECT exchange, epoch, members, tokens, hash FROM rounds ORDER BY exchange");
  std::vector<JournalRound> rounds;
  while (select.step() == SQLITE_ROW) {
    rounds.push_back({.exchange = select.integer(0),
                      .epoch = select.integer(1),
                      .members = select.text(2),
                      .tokens = select.text(3),
                      .hash = select.text(4)});
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
