#include "plan/job/sites_section.h"

namespace pelago::plan {

namespace {

void check_exchange(const Section& section, const SitesConfig& sites) {
  if (sites.inner_steps % sites.fragments != 0) {
    section.refuse("inner_steps",
                   sites.inner_steps,
                   fmt::format("must be a multiple of fragments = {}: take {}",
                               sites.fragments,
                               (sites.inner_steps / sites.fragments + 1) * sites.fragments));
  }
  const int64_t interval = sites.inner_steps / sites.fragments;
  if (sites.overlap_steps >= interval) {
    section.refuse("overlap_steps",
                   sites.overlap_steps,
                   fmt::format("must be less than inner_steps / fragments = {}, the steps from one "
                               "exchange to the next: raise inner_steps to at least {}",
                               interval,
                               (sites.overlap_steps + 1) * sites.fragments));
  }
  const bool is_by_value = sites.combine == "trimmed" || sites.combine == "median_of_means";
  if (is_by_value && sites.delta_bits == 2) {
    section.refuse("combine",
                   sites.combine,
                   "goes by single values, of which thin deltas hold few: raise delta_bits, or "
                   "combine by mean");
  }
  const int activation_bits = sites.activation_bits;
  if (activation_bits != 8 && activation_bits != 16 && activation_bits != 32) {
    section.refuse("activation_bits", activation_bits, "must be 8, 16 or 32 (as they are)");
  }
  const int bits = sites.delta_bits;
  if (bits != 2 && bits != 4 && bits != 8 && bits != 32) {
    section.refuse("delta_bits",
                   bits,
                   "must be 2 (thin: the largest values alone), 4, 8 or 32 (not quantised)");
  }
}

// A later key may still change each of these.
void start_from_method(const std::string& method, SitesConfig& sites) {
  if (method == "streaming") return;
  if (method == "thin") {
    // Momentum and mixing would count twice what stays in the local weights until it is sent.
    sites.delta_bits = 2;
    sites.merge_alpha = 0;
    sites.outer_lr = 1;
    sites.outer_momentum = 0;
    return;
  }
  sites.fragments = 1;
  sites.overlap_steps = 0;
  sites.merge_alpha = 0;
  if (method == "diloco") {
    sites.outer_lr = 0.7;
    return;
  }
  sites.inner_steps = 1;
  sites.delta_bits = 32;
  sites.outer_lr = 1;
  sites.outer_momentum = 0;
}

}  // namespace

void read_sites(const Section& section, SitesConfig& sites) {
  section.take_word("method", sites.method, {"streaming", "thin", "diloco", "sync"});
  start_from_method(sites.method, sites);
  section.take_between("inner_steps", sites.inner_steps, 1, kCountMax);
  section.take_between("fragments", sites.fragments, 1, 10'000);
  section.take_between("overlap_steps", sites.overlap_steps, 0, kCountMax);
  section.take("delta_bits", sites.delta_bits);
  section.take_between("merge_alpha", sites.merge_alpha, 0, 1);
  section.take_positive("outer_lr", sites.outer_lr);
  section.take_below_one("outer_momentum", sites.outer_momentum);
  section.take_word("combine", sites.combine, {"mean", "direction", "trimmed", "median_of_means"});
  section.take_between("error_decay", sites.error_decay, 0, 1);
  section.take_word("across", sites.across, {"auto", "rounds", "pipeline"});
  section.take("activation_bits", sites.activation_bits);
  section.take_positive("grace_s", sites.grace_s);
  section.take_between("share_rounds", sites.share_rounds, 0, 1'000'000);
  section.take_between("behind_s", sites.behind_s, 0, 1e6);
  section.take_positive("heartbeat_s", sites.heartbeat_s);
  if (section.checks()) check_exchange(section, sites);
}

}  // namespace pelago::plan
