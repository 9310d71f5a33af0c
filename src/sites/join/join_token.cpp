#include "sites/join/join_token.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/files.h"
#include "base/text/json.h"
#include "sites/tls.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

struct TokenBook::Entry {
  std::string id, site, secret_hash;
  int64_t expires_unix_s = 0;
  int64_t uses_left = 0;
  std::vector<std::string> keys;  // that it let in
};

/// One process at a time reads, changes and writes the book.
class TokenBook::Lock {
 public:
  explicit Lock(const fs::path& dir)
      : file_(::open((dir / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    if (file_ < 0 || ::flock(file_, LOCK_EX) != 0) {
      fail("{}: cannot lock the book of tokens: {}", dir.string(), std::strerror(errno));
    }
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { ::close(file_); }

 private:
  int file_;
};

namespace {

constexpr const char* kBook = "book.json";

std::string days_and_hours(int64_t seconds) {
  return seconds >= 48 * 3600 ? fmt::format("{} days", seconds / 86400)
         : seconds >= 7200    ? fmt::format("{} hours", seconds / 3600)
                              : fmt::format("{} minutes", seconds / 60);
}

Error refused(const std::string& why) {
  return Error{ErrorCode::kRefused,
               why + "; ask for another: pelago certs --token SITE --run RUN at the coordinator"};
}

}  // namespace

std::string to_json(const JoinToken& token) {
  return json({{"pelago_join_token", 1},
               {"run", token.run},
               {"site", token.site},
               {"id", token.id},
               {"secret", token.secret},
               {"expires_unix_s", token.expires_unix_s},
               {"authority", token.authority}})
             .dump(2) +
         "\n";
}

JoinToken read_join_token(const fs::path& path) {
  JoinToken token;
  try {
    const json value = parse_json(read_text_file(path));
    if (value.at("pelago_join_token") != 1) fail_usage("{}: of another version", path.string());
    value.at("run").get_to(token.run);
    value.at("site").get_to(token.site);
    value.at("id").get_to(token.id);
    value.at("secret").get_to(token.secret);
    value.at("expires_unix_s").get_to(token.expires_unix_s);
    value.at("authority").get_to(token.authority);
  } catch (const json::exception&) {
    fail_usage("{}: not a join token; copy SITE.token whole from the coordinator's tokens folder",
               path.string());
  } catch (const Failure& failure) {
    throw Failure(failure.what(), kExitUsage);
  }
  return token;
}

TokenBook::TokenBook(fs::path dir, Keeper keeper)
    : dir_(std::move(dir)), keeper_(std::move(keeper)) {
  std::error_code reason;
  fs::create_directories(dir_, reason);
  // Before there is a secret in it.
  if (!reason) fs::permissions(dir_, fs::perms::owner_all, reason);
  if (reason) fail("{}: cannot be made: {}", dir_.string(), reason.message());
}

std::vector<TokenBook::Entry> TokenBook::read() const {
  std::vector<Entry> entries;
  const fs::path path = dir_ / kBook;
  if (!fs::exists(path)) return entries;
  try {
    for (const json& value : parse_json(read_text_file(path))) {
      entries.push_back({.id = value.at("id"),
                         .site = value.at("site"),
                         .secret_hash = value.at("secret_sha256"),
                         .expires_unix_s = value.at("expires_unix_s"),
                         .uses_left = value.at("uses_left"),
                         .keys = value.at("keys")});
    }
  } catch (const json::exception&) {
    fail("{}: damaged; remove the folder, new tokens are made", path.string());
  }
  return entries;
}

void TokenBook::write(const std::vector<Entry>& entries) const {
  json book = json::array();
  for (const Entry& entry : entries) {
    book.push_back({{"id", entry.id},
                    {"site", entry.site},
                    {"secret_sha256", entry.secret_hash},
                    {"expires_unix_s", entry.expires_unix_s},
                    {"uses_left", entry.uses_left},
                    {"keys", entry.keys}});
  }
  write_file(dir_ / kBook, book.dump(2) + "\n");
}

fs::path TokenBook::issue(const std::string& run,
                          const std::string& site,
                          const std::string& authority,
                          const TokenTerms& terms,
                          int64_t now_unix_s) {
  const Lock lock(dir_);
  const JoinToken token{.run = run,
                        .site = site,
                        .id = random_hex(8),
                        .secret = random_hex(32),
                        .expires_unix_s = now_unix_s + terms.valid_s,
                        .authority = authority};
  std::vector<Entry> entries = read();
  entries.push_back({.id = token.id,
                     .site = site,
                     .secret_hash = sha256_hex(token.secret),
                     .expires_unix_s = token.expires_unix_s,
                     .uses_left = terms.uses,
                     .keys = {}});
  write(entries);
  const fs::path path = dir_ / (site + ".token");
  write_file(path, to_json(token));
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
  return path;
}

fs::path TokenBook::ensure(const std::string& run,
                           const std::string& site,
                           const std::string& authority,
                           const TokenTerms& terms,
                           int64_t now_unix_s) {
  const fs::path path = dir_ / (site + ".token");
  if (fs::exists(path)) {
    const std::string id = read_join_token(path).id;
    const Lock lock(dir_);
    for (const Entry& entry : read()) {
      const bool can_admit = entry.uses_left > 0 && entry.expires_unix_s > now_unix_s;
      if (entry.id == id && (can_admit || !entry.keys.empty())) return path;
    }
  }
  return issue(run, site, authority, terms, now_unix_s);
}

Result<std::string> TokenBook::admit(const std::string& id,
                                     const std::string& secret,
                                     const std::string& key_hash,
                                     int64_t now_unix_s) {
  const Lock lock(dir_);
  Result<std::string> site = admit_here(id, secret, key_hash, now_unix_s);
  if (!site || !keeper_) return site;
  const Status kept = keeper_(read_text_file(dir_ / kBook));
  if (!kept) return Error{ErrorCode::kUnavailable, kept.error().message};
  return site;
}

Result<std::string> TokenBook::admit_here(const std::string& id,
                                          const std::string& secret,
                                          const std::string& key_hash,
                                          int64_t now_unix_s) {
  std::vector<Entry> entries = read();
  const auto entry = std::find_if(
      entries.begin(), entries.end(), [&](const Entry& known) { return known.id == id; });
  if (entry == entries.end()) return refused("the token is not of this run");
  // Hashes of 256 random bits: how long a comparison takes tells nothing.
  if (sha256_hex(secret) != entry->secret_hash) return refused("the token's secret is wrong");
  if (std::find(entry->keys.begin(), entry->keys.end(), key_hash) != entry->keys.end()) {
    return entry->site;
  }
  if (entry->expires_unix_s <= now_unix_s) {
    return refused(fmt::format("the token of site {} expired {} ago",
                               entry->site,
                               days_and_hours(now_unix_s - entry->expires_unix_s)));
  }
  if (entry->uses_left <= 0) {
    return refused(
        fmt::format("the token of site {} was used by another machine or folder", entry->site));
  }
  --entry->uses_left;
  entry->keys.push_back(key_hash);
  write(entries);
  return entry->site;
}

}  // namespace pelago::sites
