#include "train/site_runner.h"

#include "train/recovery/supervisor.h"

namespace pelago::train {

struct SiteRunner::Impl : Supervisor {
  using Supervisor::Supervisor;
};

SiteRunner::SiteRunner(const SitePlace& place) : impl_(std::make_unique<Impl>(place)) {}

SiteRunner::~SiteRunner() = default;

void SiteRunner::prepare() { impl_->prepare(); }
void SiteRunner::start(const SiteStart& start, SiteEvents& events) {
  impl_->start(start, events);
}
void SiteRunner::allow_training() { impl_->allow_training(); }
bool SiteRunner::poll(double timeout_s) { return impl_->poll(timeout_s); }
std::span<float> SiteRunner::local_weights() { return impl_->shared().local(); }
std::span<float> SiteRunner::merged_weights() { return impl_->shared().merged(); }
void SiteRunner::weights_are_here() { impl_->weights_are_here(); }
void SiteRunner::merged(int64_t exchange_idx) { impl_->merged(exchange_idx); }
void SiteRunner::take_shares(const BatchShares& shares) { impl_->take_shares(shares); }
void SiteRunner::others_at(int64_t step) { impl_->others_at(step); }
void SiteRunner::stop_at(int64_t completed_steps, bool with_checkpoint) {
  impl_->stop_at(completed_steps, with_checkpoint);
}
int64_t SiteRunner::next_quiet_step() const { return impl_->next_quiet_step(); }
int64_t SiteRunner::completed_steps() const { return impl_->completed_steps(); }
std::vector<BridgeSocket> SiteRunner::take_bridges() { return impl_->take_bridges(); }
const plan::Plan& SiteRunner::plan() const { return impl_->own_plan(); }
const plan::JobConfig& SiteRunner::job() const { return impl_->job(); }
const std::vector<Fragment>& SiteRunner::fragments() const { return impl_->fragments(); }

}  // namespace pelago::train
