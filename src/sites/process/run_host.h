// The coordinator's end of a run, whoever starts the sites: transport, journal, door and
// coordinator joined, everything recorded in the run folder, the sites' totals kept.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "base/clock.h"
#include "sites/coordinator.h"
#include "sites/grpc_transport.h"
#include "sites/join/grpc_door.h"
#include "sites/journal.h"
#include "sites/launch.h"
#include "sites/state/etcd_store.h"

namespace pelago::sites {

class RunHost {
 public:
  /// All but options outlive the host. Makes the run's authority and a join token for each site
  /// where there is none. options.store: leads already, and its files are in the folder. Throws
  /// Failure.
  RunHost(const train::RunFolder& run_folder,
          const plan::Plan& plan,
          const ManySitesOptions& options,
          const ManySitesCallbacks& callbacks);

  /// "HOST:PORT", for sites to join at.
  std::string address() const { return transport_.address(); }
  std::filesystem::path token_file(const std::string& site) const;
  const std::vector<std::string>& sites() const { return sites_; }
  void poll(double timeout_s);
  void request_stop() { coordinator_.request_stop(); }
  bool is_over() const { return coordinator_.is_over(); }
  /// Another coordinator has taken over.
  bool is_deposed() const;
  const RoundMachine& rounds() const { return coordinator_.rounds(); }
  /// Into the run folder, and to the callback.
  void record(const std::string& name, const std::string& fields_json);
  /// What a site said of its own end, once.
  std::string take_last_words(const std::string& site);
  void count_restart(const std::string& site) { ++totals_[site].summary.restarts; }
  int64_t num_restarts(const std::string& site) { return totals_[site].summary.restarts; }
  ManySitesSummary summary() const;

 private:
  /// One site, over all its starts.
  struct Totals {
    SiteSummary summary;
    SiteStatus before;  // totals of earlier starts
    SiteStatus now;     // totals of this start
    std::string last_words;
  };

  CoordinatorCallbacks coordinator_callbacks();
  void note_refused(const std::string& by, int64_t count);
  void take_status(const std::string& site, const SiteStatus& status);
  static SiteStatus sum_of(const Totals& totals);

  EtcdStore* store_;  // null: the journal alone decides
  const train::RunFolder* run_folder_;
  const ManySitesCallbacks* callbacks_;
  std::vector<std::string> sites_;  // in plan order
  int64_t num_steps_;
  SystemClock clock_;
  double begin_s_;
  std::filesystem::path certs_dir_, tokens_dir_;
  Door door_;  // before the transport, which carries it
  GrpcTransport transport_;
  Journal journal_;
  std::map<std::string, Totals> totals_;
  int64_t num_refused_ = 0;  // by the coordinator, as far as told
  Coordinator coordinator_;
};

}  // namespace pelago::sites
