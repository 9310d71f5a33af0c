// The coordinator's state in etcd, for a run that outlives the machine its coordinator is on. Under
// the prefix lie
//   seat        who coordinates; goes with its lease when that one has been silent for 3 s
//   written     the newest write: "LEASE/NUMBER/HASH"
//   state/KEY   DurableState
//   files/NAME  what the next coordinator needs besides: the job, the plan, the authority's key
//   redo        a write too large for one transaction, until all of it is in state/
// What keeps it right: every write compares the revision in which the seat was taken, so whatever a
// coordinator sends after its lease has passed changes nothing; and it compares the write before,
// so a request that was given up and arrives late does not undo a newer one, and one that was
// carried out although its answer was lost is not done twice.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "sites/state/etcd_client.h"
#include "sites/state/state_store.h"

namespace pelago::sites {

class EtcdStore final : public StateStore {
 public:
  explicit EtcdStore(const EtcdOptions& options);
  /// Gives the seat up, so that the next coordinator need not wait for the lease.
  ~EtcdStore() override;
  EtcdStore(const EtcdStore&) = delete;
  EtcdStore& operator=(const EtcdStore&) = delete;

  /// Takes the seat if it is empty; who: for people. False: somebody else has it. kUnavailable: no
  /// quorum. Throws Failure if etcd refuses the request.
  Result<bool> try_lead(const std::string& who);
  /// Who has the seat; empty: nobody. kUnavailable: no quorum.
  Result<std::string> leader();
  /// The seat is lost for certain: nothing may be sent any more.
  bool is_deposed() const { return is_deposed_; }

  DurableState load() override;
  Status write(const std::vector<StateWrite>& writes) override;
  /// By name. Throws Failure if they cannot be read.
  std::map<std::string, std::string> files();
  /// As write(). Any thread.
  Status keep_file(const std::string& name, const std::string& content);
  /// Forgets state and files; only who leads can.
  Status forget_all();

 private:
  using Changes = std::map<std::string, std::string>;  // by whole key; empty: forgotten
  Status commit(const Changes& changes);
  Status commit_part(const Changes& changes);
  std::map<std::string, std::string> read_all(const std::string& under);
  std::string key(const std::string& name) const { return options_.prefix + "/" + name; }
  void keep_lease(const std::stop_token& stop);

  EtcdOptions options_;
  std::mutex client_mutex_;  // guards the five below
  EtcdClient client_;
  std::string lease_;  // empty: does not lead
  int64_t seat_revision_ = 0;
  std::string written_;  // as far as is known
  int64_t num_written_ = 0;
  std::atomic<bool> is_deposed_ = false;
  std::jthread keeper_;  // last: it uses the members above
};

}  // namespace pelago::sites
