#include "sites/state/etcd_store.h"

#include <condition_variable>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/files.h"
#include "base/log.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

// etcd takes 128 changes a transaction (--max-txn-ops), two of which are ours.
constexpr size_t kChangesMax = 100;
constexpr int kPageKeys = 500;

json put(const std::string& key, const std::string& value, const std::string& lease = "") {
  json request{{"key", to_base64(key)}, {"value", to_base64(value)}};
  if (!lease.empty()) request["lease"] = lease;
  return {{"request_put", request}};
}

json forget(const std::string& key) {
  return {{"request_delete_range", {{"key", to_base64(key)}}}};
}

json read(const std::string& key) { return {{"request_range", {{"key", to_base64(key)}}}}; }

json created_at(const std::string& key, int64_t revision) {
  return {{"key", to_base64(key)},
          {"target", "CREATE"},
          {"result", "EQUAL"},
          {"create_revision", std::to_string(revision)}};
}

json holds(const std::string& key, const std::string& value) {
  return {{"key", to_base64(key)},
          {"target", "VALUE"},
          {"result", "EQUAL"},
          {"value", to_base64(value)}};
}

// Numbers of 64 bits travel as strings.
int64_t number(const json& object, const char* name) {
  return object.contains(name) ? std::stoll(object.at(name).get<std::string>()) : 0;
}

std::string value_of(const json& entry) { return from_base64(entry.value("value", "")); }

/// The only key that an answer to read() has; null: it is not there.
json entry_of(const json& answer) {
  return answer.contains("kvs") ? answer.at("kvs").at(0) : json();
}

json entry_of_response(const json& answer, size_t idx) {
  return entry_of(answer.at("responses").at(idx).at("response_range"));
}

// The first key that does not begin with it.
std::string end_of(std::string prefix) {
  ++prefix.back();
  return prefix;
}

}  // namespace

EtcdStore::EtcdStore(const EtcdOptions& options) : options_(options), client_(options) {}

EtcdStore::~EtcdStore() {
  keeper_.request_stop();
  if (keeper_.joinable()) keeper_.join();
  if (!lease_.empty() && !is_deposed_) (void)client_.call("lease/revoke", {{"ID", lease_}});
}

Result<std::string> EtcdStore::leader() {
  const std::lock_guard lock(client_mutex_);
  Result<json> answer = client_.call("kv/range", {{"key", to_base64(key("seat"))}});
  if (!answer && answer.error().code == ErrorCode::kRefused) fail("{}", answer.error().message);
  if (!answer) return answer.error();
  const json seat = entry_of(*answer);
  return seat.is_null() ? std::string() : value_of(seat);
}

Result<bool> EtcdStore::try_lead(const std::string& who) {
  Result<std::string> other = leader();
  if (!other) return other.error();
  if (!other->empty()) return false;
  const std::lock_guard lock(client_mutex_);
  PELAGO_ASSERT(lease_.empty(), "a store leads once");
  Result<json> granted = client_.call("lease/grant", {{"TTL", std::to_string(options_.lease_s)}});
  if (!granted) return granted.error();
  const std::string lease = granted->at("ID");
  const std::string written = lease + "/0/";
  Result<json> answer = client_.call(
      "kv/txn",
      {{"compare", json::array({created_at(key("seat"), 0)})},
       {"success", json::array({put(key("seat"), who, lease), put(key("written"), written)})},
       {"failure", json::array({read(key("seat"))})}});
  if (!answer) return answer.error();
  if (answer->value("succeeded", false)) {
    seat_revision_ = number(answer->at("header"), "revision");
  } else {
    // Asked twice, because the first answer was lost, this may be our own seat.
    const json seat = entry_of_response(*answer, 0);
    if (seat.is_null() || seat.value("lease", "0") != lease) {
      (void)client_.call("lease/revoke", {{"ID", lease}});
      return false;
    }
    seat_revision_ = number(seat, "create_revision");
  }
  lease_ = lease;
  written_ = written;
  // The seat may have taken most of the lease's time; from now on the keeper asks for more.
  (void)client_.call("lease/keepalive", {{"ID", lease_}});
  keeper_ = std::jthread([this](const std::stop_token& stop) { keep_lease(stop); });
  return true;
}

// An etcd without a quorum lets no lease pass: only its own word ends this one.
void EtcdStore::keep_lease(const std::stop_token& stop) {
  EtcdClient client(options_);
  std::mutex never_shared;
  std::condition_variable_any woken;
  std::unique_lock lock(never_shared);
  const std::chrono::duration<double> pause(static_cast<double>(options_.lease_s) / 4);
  while (!is_deposed_) {
    woken.wait_for(lock, stop, pause, [] { return false; });  // kept just now
    if (stop.stop_requested()) return;
    Result<json> answer = client.call("lease/keepalive", {{"ID", lease_}});
    const bool is_kept =
        answer && answer->contains("result") && number(answer->at("result"), "TTL") > 0;
    if (answer && !is_kept) {
      log_warn("the seat of the coordinator is lost lease={}", lease_);
      is_deposed_ = true;
    }
  }
}

std::map<std::string, std::string> EtcdStore::read_all(const std::string& under) {
  const std::string prefix = key(under) + "/";
  std::map<std::string, std::string> found;
  std::string from = prefix;
  while (true) {
    Result<json> answer = client_.call("kv/range",
                                       {{"key", to_base64(from)},
                                        {"range_end", to_base64(end_of(prefix))},
                                        {"limit", std::to_string(kPageKeys)}});
    if (!answer) fail("the coordinator's state cannot be read: {}", answer.error().message);
    if (!answer->contains("kvs")) return found;
    for (const json& entry : answer->at("kvs")) {
      from = from_base64(entry.at("key").get<std::string>());
      found[from.substr(prefix.size())] = value_of(entry);
    }
    if (!answer->value("more", false)) return found;
    from += '\0';  // the next key there can be
  }
}

DurableState EtcdStore::load() {
  const std::lock_guard lock(client_mutex_);
  Result<json> answer = client_.call("kv/range", {{"key", to_base64(key("redo"))}});
  if (!answer) fail("the coordinator's state cannot be read: {}", answer.error().message);
  if (const json redo = entry_of(*answer); !redo.is_null()) {
    const Changes changes = json::parse(value_of(redo)).get<Changes>();
    if (const Status done = commit(changes); !done) {
      fail("the coordinator's state cannot be mended: {}", done.error().message);
    }
  }
  return read_all("state");
}

Status EtcdStore::write(const std::vector<StateWrite>& writes) {
  Changes changes;  // etcd refuses a transaction that changes a key twice
  for (const StateWrite& each : writes) changes[key("state/" + each.key)] = each.value;
  const std::lock_guard lock(client_mutex_);
  return commit(changes);
}

std::map<std::string, std::string> EtcdStore::files() {
  const std::lock_guard lock(client_mutex_);
  return read_all("files");
}

Status EtcdStore::keep_file(const std::string& name, const std::string& content) {
  const std::lock_guard lock(client_mutex_);
  return commit({{key("files/" + name), content}});
}

Status EtcdStore::forget_all() {
  const std::lock_guard lock(client_mutex_);
  Changes changes{{key("redo"), ""}};
  for (const char* under : {"state", "files"}) {
    for (const auto& [name, value] : read_all(under)) {
      changes[key(std::string(under) + "/" + name)] = "";
    }
  }
  return commit(changes);
}

Status EtcdStore::commit(const Changes& changes) {
  if (changes.empty()) return ok();
  if (changes.size() <= kChangesMax) return commit_part(changes);
  if (const Status noted = commit_part({{key("redo"), json(changes).dump()}}); !noted) return noted;
  Changes part;
  for (const auto& change : changes) {
    part.insert(change);
    if (part.size() < kChangesMax) continue;
    if (const Status done = commit_part(std::exchange(part, {})); !done) return done;
  }
  part[key("redo")] = "";
  return commit_part(part);
}

Status EtcdStore::commit_part(const Changes& changes) {
  const auto lost = [this](const std::string& why) {
    is_deposed_ = true;
    return Error{ErrorCode::kRefused, fmt::format("{}: {}", key("seat"), why)};
  };
  if (lease_.empty() || is_deposed_) return lost("this coordinator does not lead");
  std::string content;
  for (const auto& [name, value] : changes) content += name + '\0' + value + '\0';
  const std::string hash = hash_hex(content);
  for (int attempt = 0; attempt < 2; ++attempt) {
    const std::string tag = fmt::format("{}/{}/{}", lease_, num_written_ + 1, hash);
    json changed = json::array({put(key("written"), tag)});
    for (const auto& [name, value] : changes) {
      changed.push_back(value.empty() ? forget(name) : put(name, value));
    }
    Result<json> answer = client_.call(
        "kv/txn",
        {{"compare",
          json::array({created_at(key("seat"), seat_revision_), holds(key("written"), written_)})},
         {"success", changed},
         {"failure", json::array({read(key("seat")), read(key("written"))})}});
    if (!answer) {
      return Error{ErrorCode::kUnavailable, answer.error().message};
    }
    if (answer->value("succeeded", false)) {
      written_ = tag;
      ++num_written_;
      return ok();
    }
    const json seat = entry_of_response(*answer, 0);
    if (seat.is_null() || number(seat, "create_revision") != seat_revision_) {
      return lost("another coordinator has taken over");
    }
    // A write that got no answer was carried out after all: this one, or an earlier one.
    const json written = entry_of_response(*answer, 1);
    if (written.is_null() || value_of(written).rfind(lease_ + "/", 0) != 0) break;
    written_ = value_of(written);
    num_written_ = std::stoll(written_.substr(lease_.size() + 1));
    if (written_ == tag) return ok();
  }
  return lost("somebody else writes under this prefix; give each run one of its own");
}

}  // namespace pelago::sites
