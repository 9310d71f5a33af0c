// The coordinator's state in a real etcd of three members: who leads, what is written, and what
// becomes of both when members are killed.
#include "sites/state/etcd_store.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "sites/state/etcd_cluster.h"
#include "sites/tls.h"
#include "train/scratch_folder.h"

namespace pelago::sites {
namespace {

using pelago::testing::EtcdCluster;

/// One for all cases: it takes a second to start. Null: not installed.
EtcdCluster* cluster() {
  if (!EtcdCluster::is_installed()) {
    MESSAGE(EtcdCluster::kNotInstalled);
    return nullptr;
  }
  static EtcdCluster the_cluster;
  the_cluster.wait_for_leader();
  return &the_cluster;
}

EtcdOptions options_of(const EtcdCluster& etcd, const std::string& prefix) {
  EtcdOptions options = parse_etcd_url(etcd.url("pelago-test/" + prefix), {});
  options.lease_s = 60;  // no lease passes by itself
  // A busy machine may need long, and a call that is given up may be done all the same.
  options.member_s = 30;
  options.call_s = 60;
  return options;
}

/// For cases in which members are killed: as impatient as a coordinator is.
EtcdOptions impatient(EtcdOptions options) {
  options.member_s = 0.7;
  options.call_s = EtcdOptions{}.call_s;
  return options;
}

void lead(EtcdStore& store, const std::string& who) {
  const double deadline_s = steady_now_s() + 60;
  while (steady_now_s() < deadline_s) {
    const Result<bool> leads = store.try_lead(who);
    if (leads && *leads) return;
    sleep_until_s(steady_now_s() + 0.02);
  }
  FAIL("nobody leads");
}

/// As if it had been silent: etcd ends the lease, and the holder is not told.
void end_lease_of(const EtcdOptions& options) {
  EtcdClient client(options);
  auto seat = client.call("kv/range", {{"key", to_base64(options.prefix + "/seat")}});
  REQUIRE(seat);
  REQUIRE(client.call("lease/revoke", {{"ID", seat->at("kvs")[0].at("lease")}}));
}

TEST_CASE("base64 is that of RFC 4648, and comes back") {
  CHECK(to_base64("") == "");
  CHECK(to_base64("f") == "Zg==");
  CHECK(to_base64("fo") == "Zm8=");
  CHECK(to_base64("foobar") == "Zm9vYmFy");
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  for (size_t length = 0; length <= all.size(); ++length) {
    CHECK(from_base64(to_base64(all.substr(0, length))) == all.substr(0, length));
  }
  CHECK(from_base64("Zm9*") == "");
}

TEST_CASE("an address of etcd that makes no sense is refused with the form that does") {
  const EtcdOptions good = parse_etcd_url("etcds://a:1,[::1]:2/runs/one/", "certs");
  CHECK(good.members == std::vector<std::string>{"https://a:1", "https://[::1]:2"});
  CHECK(good.prefix == "/runs/one");
  for (const char* url : {"etcd://a:1",
                          "etcd://a:1/",
                          "etcd://a/run",
                          "etcd://a:1,/run",
                          "etcd://:1/run",
                          "etcd:/a:1/run",
                          "redis://a:1/run",
                          ""}) {
    CAPTURE(url);
    CHECK_THROWS_WITH_AS(parse_etcd_url(url, {}), doctest::Contains("etcd://HOST:PORT"), Failure);
  }
  CHECK_THROWS_AS(parse_etcd_url("etcd://a:1/run", "certs"), Failure);
}

TEST_CASE("what one coordinator wrote the next one reads, and only one leads at a time") {
  EtcdCluster* etcd = cluster();
  if (etcd == nullptr) return;
  const EtcdOptions options = options_of(*etcd, "next");
  EtcdStore next(options);
  DurableState expected;
  {
    EtcdStore first(options);
    CHECK(first.write({{.key = "run", .value = "{}"}}).error().code == ErrorCode::kRefused);
    EtcdStore leading(options);
    lead(leading, "first");
    CHECK(*next.leader() == "first");
    CHECK_FALSE(*next.try_lead("next"));
    std::vector<StateWrite> many;  // more than a transaction takes, some of them twice
    for (int i = 0; i < 300; ++i) {
      many.push_back({.key = fmt::format("commit/{}", i), .value = fmt::format("\"{}\"", i)});
    }
    many.push_back({.key = "commit/7", .value = "\"seven\""});
    CHECK(leading.write(many));
    CHECK(leading.write({{.key = "commit/8", .value = {}}, {.key = "run", .value = "{}"}}));
    CHECK(leading.keep_file("job.toml", "name = \"x\"\n"));
    expected = leading.load();
    CHECK(expected.size() == 300);
    CHECK(expected.at("commit/7") == "\"seven\"");
    CHECK(expected.at("commit/299") == "\"299\"");
    CHECK_FALSE(expected.contains("commit/8"));
  }
  CHECK(*next.leader() == "");  // given up, not waited for
  lead(next, "next");
  CHECK(next.load() == expected);
  CHECK(next.files().at("job.toml") == "name = \"x\"\n");
  CHECK(next.forget_all());
  CHECK(next.load().empty());
  CHECK(next.files().empty());
}

TEST_CASE("over TLS etcd lets in who has a certificate of its authority, and nobody else") {
  if (!EtcdCluster::is_installed()) {
    MESSAGE(EtcdCluster::kNotInstalled);
    return;
  }
  const train::ScratchFolder folder("etcd-tls"), strangers("etcd-strangers");
  make_certificates(folder.path(), {"etcd", "client"});
  make_certificates(strangers.path(), {"etcd", "client"});
  const EtcdCluster etcd(1, folder.path());
  EtcdOptions options = parse_etcd_url(etcd.url("tls"), folder.path());
  EtcdStore store(options);
  lead(store, "coordinator");
  REQUIRE(store.write({{.key = "term", .value = "1"}}));
  CHECK(store.load() == DurableState{{"term", "1"}});

  // Who is of another authority does not believe etcd; who has no certificate etcd does not answer.
  const auto reason_for = [&](const std::filesystem::path& certs_dir) {
    options.certs_dir = certs_dir;
    EtcdClient client(options);
    const auto answer = client.call("kv/range", {{"key", to_base64(options.prefix + "/term")}});
    REQUIRE_FALSE(answer);
    return answer.error().message;
  };
  const std::string remedy = "are ca.pem and client.pem in";
  CHECK(reason_for(strangers.path()).find(remedy) != std::string::npos);
  std::filesystem::remove(folder.path() / "client.pem");
  CHECK_FALSE(reason_for(folder.path()).empty());  // its alert may be overtaken by the line's end
}

TEST_CASE("a deposed coordinator's late write is refused and changes nothing") {
  EtcdCluster* etcd = cluster();
  if (etcd == nullptr) return;
  const EtcdOptions options = options_of(*etcd, "deposed");
  EtcdStore old(options), next(options);
  lead(old, "old");
  REQUIRE(old.write({{.key = "term", .value = "0"}}));
  end_lease_of(options);
  lead(next, "next");
  CHECK_FALSE(old.is_deposed());  // it does not know yet
  REQUIRE(next.write({{.key = "term", .value = "1"}}));
  const Status late = old.write({{.key = "term", .value = "0"}, {.key = "commit/3", .value = "x"}});
  REQUIRE_FALSE(late);
  CHECK(late.error().code == ErrorCode::kRefused);
  CHECK(late.error().message.find("another coordinator has taken over") != std::string::npos);
  CHECK(old.is_deposed());
  CHECK(next.load() == DurableState{{"term", "1"}});
  CHECK_FALSE(old.keep_file("tokens", "[]"));
}

TEST_CASE("a coordinator that falls silent loses its seat by itself") {
  EtcdCluster* etcd = cluster();
  if (etcd == nullptr) return;
  EtcdOptions options = options_of(*etcd, "silent");
  EtcdStore watching(options);
  options.lease_s = 1;
  // Takes the seat as a coordinator does and then dies: nobody keeps the lease.
  EtcdClient dying(options);
  auto lease = dying.call("lease/grant", {{"TTL", "1"}});
  REQUIRE(lease);
  REQUIRE(dying.call("kv/put",
                     {{"key", to_base64(options.prefix + "/seat")},
                      {"value", to_base64("dying")},
                      {"lease", lease->at("ID")}}));
  CHECK(*watching.leader() == "dying");
  lead(watching, "watching");
}

TEST_CASE("etcd's leader is killed in the midst of writes: each that was acknowledged is there") {
  EtcdCluster* etcd = cluster();
  if (etcd == nullptr) return;
  EtcdStore store(impatient(options_of(*etcd, "killed")));
  lead(store, "coordinator");
  constexpr int kWrites = 60;
  double longest_s = 0;
  for (int i = 0; i < kWrites; ++i) {
    if (i == kWrites / 3) CHECK(etcd->kill(etcd->wait_for_leader()) == SIGKILL);
    const double begin_s = steady_now_s();
    const std::vector<StateWrite> writes = {{.key = fmt::format("commit/{}", i), .value = "1"},
                                            {.key = "newest", .value = std::to_string(i)}};
    while (!store.write(writes)) {
      REQUIRE_FALSE(store.is_deposed());
      REQUIRE(steady_now_s() - begin_s < 60);
    }
    longest_s = std::max(longest_s, steady_now_s() - begin_s);
  }
  const DurableState state = store.load();
  CHECK(state.size() == kWrites + 1);
  CHECK(state.at("newest") == std::to_string(kWrites - 1));
  MESSAGE("the longest write took " << longest_s << " s");
  for (int i = 0; i < EtcdCluster::kMembers; ++i) etcd->restart_if_dead(i);
}

TEST_CASE(
    "without a quorum nothing is decided, in bounded time; with it all goes on, nothing twice") {
  EtcdCluster* etcd = cluster();
  if (etcd == nullptr) return;
  const EtcdOptions options = impatient(options_of(*etcd, "quorum"));
  EtcdStore store(options), other(options);
  lead(store, "coordinator");
  REQUIRE(store.write({{.key = "newest", .value = "1"}}));
  const int leader = etcd->wait_for_leader();
  const int second = (leader + 1) % EtcdCluster::kMembers;
  CHECK(etcd->kill(leader) == SIGKILL);
  CHECK(etcd->kill(second) == SIGKILL);
  const double begin_s = steady_now_s();
  const Status written = store.write({{.key = "newest", .value = "2"}});
  REQUIRE_FALSE(written);
  CHECK(written.error().code == ErrorCode::kUnavailable);
  CHECK(steady_now_s() - begin_s < options.call_s + options.member_s + 30);
  CHECK_FALSE(store.is_deposed());
  CHECK_FALSE(other.try_lead("other"));
  CHECK_FALSE(other.leader());
  etcd->start(leader);
  etcd->start(second);
  etcd->wait_for_leader();
  CHECK_FALSE(*other.try_lead("other"));  // no lease passes without a quorum
  REQUIRE(store.write({{.key = "newest", .value = "2"}}));
  REQUIRE(store.write({{.key = "newest", .value = "3"}}));
  CHECK(store.load() == DurableState{{"newest", "3"}});
}

TEST_CASE("a request that was given up and arrives late does not undo a newer one") {
  EtcdCluster* etcd = cluster();
  if (etcd == nullptr) return;
  const EtcdOptions options = options_of(*etcd, "late");
  EtcdStore store(options);
  lead(store, "coordinator");
  REQUIRE(store.write({{.key = "a", .value = "1"}}));
  EtcdClient client(options);
  auto seat = client.call("kv/range", {{"key", to_base64(options.prefix + "/seat")}});
  auto written = client.call("kv/range", {{"key", to_base64(options.prefix + "/written")}});
  // What the store would have sent next, held up on its way.
  const nlohmann::json late = {
      {"compare",
       {{{"key", to_base64(options.prefix + "/seat")},
         {"target", "CREATE"},
         {"create_revision", seat->at("kvs")[0].at("create_revision")}},
        {{"key", to_base64(options.prefix + "/written")},
         {"target", "VALUE"},
         {"value", written->at("kvs")[0].at("value")}}}},
      {"success",
       nlohmann::json::array(
           {{{"request_put",
              {{"key", to_base64(options.prefix + "/state/a")}, {"value", to_base64("late")}}}}})}};
  REQUIRE(store.write({{.key = "a", .value = "2"}}));
  auto answer = client.call("kv/txn", late);
  REQUIRE(answer);
  CHECK_FALSE(answer->value("succeeded", false));
  CHECK(store.load() == DurableState{{"a", "2"}});
}

}  // namespace
}  // namespace pelago::sites
