// Bugs that code of this kind has had, or could well have, each as a change of what one part of the
// protocol hears, says, writes or reads. A check that trusts a fence is broken by moving the fence:
// code that does not look at an epoch behaves as if every epoch were the right one.
#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <set>

#include "sites/simulation/simulated_run.h"

namespace pelago::sites {

namespace {

template <typename T>
T* as(Message& message) {
  return std::get_if<T>(&message);
}

/// The newest epoch and members of each exchange that went by.
using Begins = std::map<int64_t, Begin>;

// What the coordinator hears.

void forgets_epochs_of_reports(FaultyCode& code) {
  auto begun = std::make_shared<Begins>();
  code.coordinator_says = [begun](const std::string&, Message& message) {
    if (const auto* begin = as<Begin>(message)) (*begun)[begin->exchange] = *begin;
    return true;
  };
  code.coordinator_hears = [begun](const std::string&, Message& message) {
    if (auto* status = as<SiteStatus>(message)) {
      for (ReadyExchange& held : status->exchanges) {
        const auto found = begun->find(held.exchange);
        if (!held.hash.empty() && found != begun->end()) held.begun_epoch = found->second.epoch;
      }
    }
    return true;
  };
}

void takes_unfinished_for_whole(FaultyCode& code) {
  code.coordinator_hears = [](const std::string&, Message& message) {
    if (auto* status = as<SiteStatus>(message)) {
      for (ReadyExchange& held : status->exchanges) {
        if (held.begun_epoch >= 0 && held.hash.empty()) held.hash = "not yet known";
      }
    }
    return true;
  };
}

void believes_any_greeting(FaultyCode& code) {
  auto count = std::make_shared<uint64_t>(1'000'000);
  code.coordinator_hears = [count](const std::string&, Message& message) {
    if (auto* hello = as<Hello>(message)) hello->incarnation = ++*count;
    return true;
  };
}

void loses_every(FaultyCode& code, int64_t nth) {
  auto count = std::make_shared<int64_t>(0);
  code.coordinator_hears = [count, nth](const std::string&, Message& message) {
    return as<SiteStatus>(message) == nullptr || ++*count % nth == 0;
  };
}

// What the coordinator says.

template <typename T>
FaultyCode::Ear never_says() {
  return [](const std::string&, Message& message) { return as<T>(message) == nullptr; };
}

template <typename T>
FaultyCode::Ear says_once() {
  auto said = std::make_shared<std::set<std::string>>();
  return [said](const std::string& site, Message& message) {
    const T* content = as<T>(message);
    if (content == nullptr) return true;
    return said->insert(site + encode("", *content).head).second;
  };
}

void begins_without_epochs(FaultyCode& code) {
  code.coordinator_says = [](const std::string&, Message& message) {
    if (auto* begin = as<Begin>(message)) begin->epoch = 1;
    if (auto* commit = as<Commit>(message)) commit->epoch = 1;
    return true;
  };
  code.coordinator_hears = nullptr;
}

void changes_commit(FaultyCode& code, const std::function<void(Commit&)>& change) {
  code.coordinator_says = [change](const std::string&, Message& message) {
    if (auto* commit = as<Commit>(message)) change(*commit);
    return true;
  };
}

void changes_welcome(FaultyCode& code, const std::function<void(Welcome&)>& change) {
  code.coordinator_says = [change](const std::string&, Message& message) {
    if (auto* welcome = as<Welcome>(message)) {
      if (welcome->mode == StartMode::kJoin) change(*welcome);
    }
    return true;
  };
}

void stops_too_early(FaultyCode& code) {
  code.coordinator_says = [](const std::string&, Message& message) {
    if (auto* stop = as<StopAt>(message)) stop->step = std::max<int64_t>(stop->step - 4, 1);
    return true;
  };
}

void commits_to_some_first(FaultyCode& code) {
  // A second Begin for what is already committed, under the same epoch, without its last member.
  code.coordinator_says = [](const std::string& site, Message& message) {
    if (auto* begin = as<Begin>(message)) {
      const bool is_last = !begin->members.empty() && begin->members.back().site == site;
      if (!is_last && begin->members.size() > 2) begin->members.pop_back();
    }
    return true;
  };
}

// What a site hears and says.

void adds_old_slices(FaultyCode& code) {
  auto epochs = std::make_shared<std::map<std::pair<std::string, int64_t>, int64_t>>();
  code.site_hears = [epochs](const std::string& site, const std::string&, Message& message) {
    if (const auto* begin = as<Begin>(message)) (*epochs)[{site, begin->exchange}] = begin->epoch;
    if (auto* slice = as<Slice>(message)) {
      const auto known = epochs->find({site, slice->exchange});
      if (known != epochs->end()) slice->epoch = known->second;
    }
    return true;
  };
}

// Slices of an epoch arrive when another has begun.
void late_and_often(SimulatedRunOptions& run) {
  run.num_sites = 4;
  run.num_crashes = 4;
  run.num_partitions = 4;
  run.network.jitter_s = 1.5;
}

void applies_before_commit(FaultyCode& code) {
  // The site that holds the whole outcome takes its own report for the commit.
  auto begun = std::make_shared<std::map<std::string, Begins>>();
  auto whole = std::make_shared<std::map<std::string, Commit>>();
  code.site_says = [begun, whole](const std::string& site, const std::string&, Message& message) {
    if (const auto* status = as<SiteStatus>(message)) {
      for (const ReadyExchange& held : status->exchanges) {
        if (held.hash.empty()) continue;
        const Begin& begin = (*begun)[site][held.exchange];
        (*whole)[site] = Commit{.exchange = held.exchange,
                                .epoch = held.begun_epoch,
                                .members = begin.members,
                                .hash = held.hash,
                                .donors = {},
                                .taken_exchange = held.exchange,
                                .taken_epoch = held.begun_epoch};
      }
    }
    return true;
  };
  code.site_hears = [begun, whole](const std::string& site, const std::string&, Message& message) {
    if (const auto* begin = as<Begin>(message)) (*begun)[site][begin->exchange] = *begin;
    const auto mine = whole->find(site);
    if (as<Alive>(message) != nullptr && mine != whole->end()) {
      message = mine->second;
      whole->erase(mine);
    }
    return true;
  };
}

void believes_any_fragment(FaultyCode& code) {
  // The donor's exchange is taken for the one that was asked for.
  code.site_hears = [](const std::string&, const std::string&, Message& message) {
    if (auto* manifest = as<FragmentManifest>(message))
      manifest->exchange = std::max<int64_t>(manifest->exchange - 3, -1);
    return true;
  };
}

void gives_other_leaves(FaultyCode& code) {
  code.site_hears = [](const std::string&, const std::string&, Message& message) {
    if (auto* wanted = as<FetchLeaf>(message))
      wanted->leaf = std::max<int64_t>(wanted->leaf - 1, 0);
    return true;
  };
}

template <typename T>
FaultyCode::SiteEar never() {
  return [](const std::string&, const std::string&, Message& message) {
    return as<T>(message) == nullptr;
  };
}

void changes_status(FaultyCode& code, const std::function<void(ReadyExchange&)>& change) {
  code.site_says = [change](const std::string&, const std::string&, Message& message) {
    if (auto* status = as<SiteStatus>(message)) {
      for (ReadyExchange& held : status->exchanges) change(held);
    }
    return true;
  };
}

// What the coordinator writes and reads.

void forgets(FaultyCode& code, const std::string& prefix) {
  code.coordinator_reads = [prefix](DurableState& state) {
    std::erase_if(state, [&](const auto& entry) { return entry.first.rfind(prefix, 0) == 0; });
  };
}

void never_writes(FaultyCode& code, const std::string& prefix) {
  code.coordinator_writes = [prefix](std::vector<StateWrite>& writes) {
    std::erase_if(writes, [&](const StateWrite& write) { return write.key.rfind(prefix, 0) == 0; });
  };
}

/// In what the coordinator believes and says.
std::vector<PlantedBug> bugs_of_the_coordinator() {
  return {
      {"reports of an old epoch count", forgets_epochs_of_reports},
      {"a result that is not there yet counts", takes_unfinished_for_whole},
      {"any greeting is a new start", believes_any_greeting},
      {"no status is heard", [](FaultyCode& code) { loses_every(code, int64_t{1} << 40); }},
      {"Begin is never sent",
       [](FaultyCode& code) { code.coordinator_says = never_says<Begin>(); }},
      {"Commit is never sent",
       [](FaultyCode& code) { code.coordinator_says = never_says<Commit>(); }},
      {"Commit is sent once",
       [](FaultyCode& code) { code.coordinator_says = says_once<Commit>(); }},
      {"Welcome is sent once",
       [](FaultyCode& code) { code.coordinator_says = says_once<Welcome>(); }},
      {"leave to train is given once",
       [](FaultyCode& code) { code.coordinator_says = says_once<AllowTraining>(); }},
      {"Release is never sent",
       [](FaultyCode& code) { code.coordinator_says = never_says<Release>(); }},
      {"epochs do not rise", begins_without_epochs},
      {"members of one epoch are told apart", commits_to_some_first},
      {"a commit carries another hash",
       [](FaultyCode& code) { changes_commit(code, [](Commit& commit) { commit.hash = "x"; }); }},
      {"a commit names no donors",
       [](FaultyCode& code) {
         changes_commit(code, [](Commit& commit) { commit.donors.clear(); });
       }},
      {"a commit does not tell whose delta it took",
       [](FaultyCode& code) {
         changes_commit(code, [](Commit& commit) { commit.taken_exchange = -1; });
       }},
      {"a commit is numbered one higher",
       [](FaultyCode& code) { changes_commit(code, [](Commit& commit) { ++commit.exchange; }); }},
      {"a joiner's lease begins at its step",
       [](FaultyCode& code) {
         changes_welcome(code, [](Welcome& welcome) { welcome.data_step = welcome.start_step; });
       }},
      {"a joiner's lease begins anew",
       [](FaultyCode& code) {
         changes_welcome(code, [](Welcome& welcome) { welcome.data_step = 0; });
       }},
      {"a joiner starts before the snapshot of what it has",
       [](FaultyCode& code) {
         changes_welcome(code, [](Welcome& welcome) { welcome.start_step -= 2; });
       }},
      {"workers read one data step on", [](FaultyCode& code) { code.data_ahead = 1; }},
  };
}

/// In how the sites come to new shares of the batch.
std::vector<PlantedBug> bugs_of_shares() {
  return {
      {"a commit does not tell of new shares",
       [](FaultyCode& code) {
         changes_commit(code, [](Commit& commit) { commit.shares.clear(); });
       }},
      {"whoever goes back to a checkpoint does not hear of the shares since the start",
       [](FaultyCode& code) {
         changes_welcome(code, [](Welcome& welcome) { welcome.shares.clear(); });
       },
       [](SimulatedRunOptions& run) {  // the commits tell whoever joins
         run.slower_at_s = 0.1;
         run.has_power_cut = true;
         run.faults_until_s = 60;
         run.schedule.num_steps = 80;
       }},
      {"one site comes to new shares a data step late",
       [](FaultyCode& code) {
         code.site_hears = [](const std::string& site, const std::string&, Message& message) {
           auto* commit = as<Commit>(message);
           if (commit == nullptr || site != "site0") return true;
           for (ShareChange& change : commit->shares) ++change.data_step;
           return true;
         };
       }},
      {"a delta weighs as much as with the first shares",
       [](FaultyCode& code) {
         changes_status(code, [](ReadyExchange& held) {
           held.tokens = (held.data_end - held.data_begin) * 4 * kSequenceTokens;
         });
       }},
      {"the journal forgets shares", [](FaultyCode& code) { forgets(code, "shares"); }},
  };
}

/// In what sites do and what the journal keeps.
std::vector<PlantedBug> bugs_of_sites_and_journal() {
  return {
      {"the stop comes before what has begun", stops_too_early},
      {"slices of an old epoch are added", adds_old_slices, late_and_often},
      {"a site applies before the commit", applies_before_commit},
      {"a fragment of any exchange is believed", believes_any_fragment},
      {"a fragment that is missing is not asked for",
       [](FaultyCode& code) { code.site_says = never<Fetch>(); }},
      {"a donor does not answer",
       [](FaultyCode& code) { code.site_says = never<FragmentManifest>(); }},
      {"a donor gives no leaves", [](FaultyCode& code) { code.site_says = never<FragmentLeaf>(); }},
      {"a donor gives the leaf before the one that was asked for", gives_other_leaves},
      {"a delta claims data steps it has not",
       [](FaultyCode& code) {
         changes_status(code, [](ReadyExchange& held) { held.data_begin = 0; });
       }},
      {"a delta hides where it begins",
       [](FaultyCode& code) {
         changes_status(code, [](ReadyExchange& held) { held.data_begin = held.data_end; });
       }},
      {"a step that is left out takes its samples with it",
       [](FaultyCode& code) { code.skips_data = true; }},
      {"a delta claims the samples of steps that were left out",
       [](FaultyCode& code) {
         code.site_says = [](const std::string&, const std::string&, Message& message) {
           auto* status = as<SiteStatus>(message);
           if (status == nullptr) return true;
           for (ReadyExchange& held : status->exchanges) held.data_end += status->left_out_steps;
           return true;
         };
       }},
      {"a site leaves out more steps than it is behind",
       [](FaultyCode& code) {
         code.coordinator_says = [](const std::string&, Message& message) {
           if (auto* others = as<OthersAt>(message)) others->step += 3;
           return true;
         };
       }},
      {"the journal forgets commits", [](FaultyCode& code) { forgets(code, "commit/"); }},
      {"the journal forgets sites", [](FaultyCode& code) { forgets(code, "site/"); }},
      {"the journal forgets the run", [](FaultyCode& code) { forgets(code, "run"); }},
      {"terms do not rise", [](FaultyCode& code) { never_writes(code, "term"); }},
      {"commits are not written", [](FaultyCode& code) { never_writes(code, "commit/"); }},
      {"a stand-by takes over without what is written",
       [](FaultyCode& code) { forgets(code, ""); }},
      {"what a deposed coordinator writes counts",
       [](FaultyCode& code) { code.store_forgets_seats = true; }},
      {"a request that comes twice is carried out twice",
       [](FaultyCode& code) { code.store_forgets_numbers = true; }},
      {"it is said before it is written",
       [](FaultyCode& code) { code.says_before_written = true; }},
  };
}

}  // namespace

const std::vector<PlantedBug>& planted_bugs() {
  static const std::vector<PlantedBug> bugs = [] {
    std::vector<PlantedBug> all = bugs_of_the_coordinator();
    std::ranges::move(bugs_of_shares(), std::back_inserter(all));
    std::ranges::move(bugs_of_sites_and_journal(), std::back_inserter(all));
    return all;
  }();
  return bugs;
}

}  // namespace pelago::sites
