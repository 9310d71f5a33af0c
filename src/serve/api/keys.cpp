#include "serve/api/keys.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "base/config.h"
#include "base/error.h"
#include "base/log.h"

namespace pelago::serve {

namespace {

// Takes as long whatever the two differ in, so that a key cannot be guessed letter by letter.
bool equal_in_constant_time(std::string_view given, std::string_view wanted) {
  unsigned difference = given.size() == wanted.size() ? 0 : 1;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const char c = given.empty() ? '\0' : given[i % given.size()];
    difference |= static_cast<unsigned>(static_cast<unsigned char>(c ^ wanted[i]));
  }
  return difference == 0;
}

std::string_view key_of(std::string_view authorization) {
  constexpr std::string_view kBearer = "Bearer ";
  if (!authorization.starts_with(kBearer) && !authorization.starts_with("bearer ")) return "";
  authorization.remove_prefix(kBearer.size());
  return authorization;
}

}  // namespace

std::vector<ApiKey> read_key_file(const std::filesystem::path& path) {
  const ConfigTable file = ConfigTable::read_file(path);
  std::vector<ApiKey> keys;
  std::set<std::string> names, secrets;
  for (const ConfigTable& table : file.tables("key")) {
    ApiKey key;
    table.read("name", key.name);
    table.read("key", key.key);
    table.read("requests_per_minute", key.requests_per_minute);
    table.read("tokens_per_minute", key.tokens_per_minute);
    table.read("concurrent", key.concurrent);
    const auto check = [&](bool is_good, std::string_view what) {
      if (!is_good) fail_usage("{}: {}", table.where(), what);
    };
    check(!key.name.empty(), "a key needs a name");
    check(key.key.size() >= 16 && key.key.find_first_of(" \t\r\n") == std::string::npos,
          "key must have at least 16 characters and no blanks; make one by: openssl rand -hex 24");
    check(key.requests_per_minute >= 0 && key.tokens_per_minute >= 0 && key.concurrent >= 0,
          "requests_per_minute, tokens_per_minute and concurrent must be 0 (no bound) or more");
    check(names.insert(key.name).second, "two keys have this name");
    check(secrets.insert(key.key).second, "two names have this key");
    keys.push_back(std::move(key));
  }
  file.refuse_unknown();
  if (keys.empty()) fail_usage("{}: holds no [[key]]", path.string());
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && (status.st_mode & 077) != 0) {
    log_warn("key file can be read by others path={} remedy=\"chmod 600\"", path.string());
  }
  return keys;
}

KeyRing::KeyRing(std::vector<ApiKey> keys)
    : keys_(std::move(keys)), uses_(std::max<size_t>(1, keys_.size())) {}
KeyRing::~KeyRing() = default;

std::optional<size_t> KeyRing::find(std::optional<std::string_view> authorization) const {
  if (keys_.empty()) return 0;
  const std::string_view given = key_of(authorization.value_or(""));
  std::optional<size_t> found;
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (equal_in_constant_time(given, keys_[i].key)) found = i;
  }
  return found;
}

bool KeyRing::knows(std::optional<std::string_view> authorization) const {
  return find(authorization).has_value();
}

std::shared_ptr<KeyRing::Lease> KeyRing::admit(std::optional<std::string_view> authorization,
                                               double now_s,
                                               Refusal& refusal) {
  const auto found = find(authorization);
  if (!found) {
    refusal = {.status = 401,
               .message = authorization
                              ? "this API key is not known here"
                              : "an API key is missing: send \"Authorization: Bearer KEY\"",
               .code = "invalid_api_key"};
    return nullptr;
  }
  if (keys_.empty()) return std::make_shared<Lease>(*this, 0);
  const ApiKey& key = keys_[*found];
  const std::lock_guard lock(mutex_);
  Use& use = uses_[*found];
  const auto per_minute = [](int64_t number) { return static_cast<double>(number); };
  if (use.is_new)
    use = {.requests = per_minute(key.requests_per_minute),
           .tokens = per_minute(key.tokens_per_minute),
           .at_s = now_s,
           .is_new = false};
  const double minutes = (now_s - use.at_s) / 60;
  use.at_s = now_s;
  use.requests = std::min(per_minute(key.requests_per_minute),
                          use.requests + minutes * per_minute(key.requests_per_minute));
  use.tokens = std::min(per_minute(key.tokens_per_minute),
                        use.tokens + minutes * per_minute(key.tokens_per_minute));
  refusal = {.status = 429, .message = {}, .code = "rate_limit_exceeded"};
  if (key.requests_per_minute > 0 && use.requests < 1) {
    refusal.message =
        fmt::format("this key may send {} requests a minute", key.requests_per_minute);
    refusal.retry_after_s = (1 - use.requests) * 60 / per_minute(key.requests_per_minute);
    return nullptr;
  }
  if (key.tokens_per_minute > 0 && use.tokens <= 0) {
    refusal.message = fmt::format("this key may use {} tokens a minute", key.tokens_per_minute);
    refusal.retry_after_s = (1 - use.tokens) * 60 / per_minute(key.tokens_per_minute);
    return nullptr;
  }
  if (key.concurrent > 0 && use.num_running >= key.concurrent) {
    refusal.message = fmt::format("this key may have {} requests at once", key.concurrent);
    refusal.retry_after_s = 1;
    return nullptr;
  }
  use.requests -= 1;
  ++use.num_running;
  return std::make_shared<Lease>(*this, *found);
}

const std::string& KeyRing::Lease::name() const {
  static const std::string nobody;
  return ring_.keys_.empty() ? nobody : ring_.keys_[idx_].name;
}

void KeyRing::Lease::charge(int64_t num_tokens) {
  const std::lock_guard lock(ring_.mutex_);
  ring_.uses_[idx_].tokens -= static_cast<double>(num_tokens);
}

KeyRing::Lease::~Lease() {
  const std::lock_guard lock(ring_.mutex_);
  --ring_.uses_[idx_].num_running;
}

}  // namespace pelago::serve
