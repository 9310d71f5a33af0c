// A run whose coordinator may be on any of several hosts: who coordinates, and what the next one
// needs besides the state. The first writes the job, the plan, the book of join tokens and the
// authority that signs certificates into etcd; the others stand by until its seat is empty and make
// their run folders from that. So etcd holds the run's secrets, as the coordinator's disk does.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "sites/state/etcd_store.h"

namespace pelago::sites {

class Journal;

struct SeatRequest {
  std::string who;  // for people: "HOST:PORT"
  /// Who leads, once it is known that somebody else does, and when that changes.
  std::function<void(const std::string& leader)> on_waiting;
};

/// Waits until this coordinator leads; null: a stop was requested first. While etcd cannot be
/// reached it tries again. Throws Failure if etcd refuses.
std::unique_ptr<EtcdStore> take_seat(const EtcdOptions& options,
                                     const std::atomic<int>& stop_requests,
                                     const SeatRequest& request);

struct SharedRun {
  std::string job_toml, plan_json;
};
/// What an earlier coordinator has left; nothing if there was none.
std::optional<SharedRun> read_shared_run(EtcdStore& store);
/// Writes certs/ and tokens/ as the earlier coordinator had them. Throws Failure.
void fetch_run_files(EtcdStore& store, const std::filesystem::path& run_dir);
/// The other way. Throws Failure (exit 75) if etcd cannot be reached.
void share_run_files(EtcdStore& store, const std::filesystem::path& run_dir);
Status keep_token_book(EtcdStore& store, const std::string& book_json);

/// The journal takes over the store's state. A store without any takes the journal's: a run goes
/// on whose state was in its folder before.
void even_out(EtcdStore& store, Journal& journal);
/// Whether that is the state of a run that has begun and is not over.
bool is_live(const DurableState& state);

}  // namespace pelago::sites
