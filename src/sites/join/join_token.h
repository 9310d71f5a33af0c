// Join tokens: what a person carries to a site so that it may ask for its certificate. A token is
// for one site, holds the authority by which the site knows the coordinator, and lets in as many
// keys as it has uses (one, most often) until it expires. Which keys it let in is written down
// before they hear of it: a token that was copied on its way lets in one key, not two, and the
// owner of a key that is in may come back at any time, which is how a site starts again.
// A book keeps no secrets, only their hashes. Several processes may use one book at once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::sites {

struct JoinToken {
  std::string run;   // the job's name
  std::string site;  // which it lets in
  std::string id, secret;
  int64_t expires_unix_s = 0;
  std::string authority;  // certificate, PEM
};
/// The file's text. It is a secret.
std::string to_json(const JoinToken& token);
/// Throws Failure (exit 2) naming the file if it is no token.
JoinToken read_join_token(const std::filesystem::path& path);

struct TokenTerms {
  int64_t valid_s = 24 * 3600;  // long enough to carry it there, short enough to be forgotten
  int64_t uses = 1;
};

class TokenBook {
 public:
  /// Puts the book's text where the next coordinator finds it.
  using Keeper = std::function<Status(const std::string& book_json)>;
  /// dir: tokens/ of a run; made, open to its owner alone. keeper: if set, nobody is let in whom it
  /// has not noted. Throws Failure.
  explicit TokenBook(std::filesystem::path dir, Keeper keeper = {});

  /// Enters a new token and writes dir/SITE.token. Throws Failure.
  std::filesystem::path issue(const std::string& run,
                              const std::string& site,
                              const std::string& authority,
                              const TokenTerms& terms,
                              int64_t now_unix_s);
  /// dir/SITE.token if it can still let a site in, or has; else a new one.
  std::filesystem::path ensure(const std::string& run,
                               const std::string& site,
                               const std::string& authority,
                               const TokenTerms& terms,
                               int64_t now_unix_s);
  /// The site that this key may come in as; on disk before it returns. kRefused with a line for
  /// the one who asks: unknown, wrong secret, expired, used up. kUnavailable: cannot be noted now.
  Result<std::string> admit(const std::string& id,
                            const std::string& secret,
                            const std::string& key_hash,
                            int64_t now_unix_s);

 private:
  struct Entry;
  class Lock;
  Result<std::string> admit_here(const std::string& id,
                                 const std::string& secret,
                                 const std::string& key_hash,
                                 int64_t now_unix_s);
  std::vector<Entry> read() const;
  void write(const std::vector<Entry>& entries) const;

  std::filesystem::path dir_;
  Keeper keeper_;
};

}  // namespace pelago::sites
