#include "sites/exchange/global_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/files.h"

namespace pelago::sites {

namespace {

size_t at(int64_t offset) { return static_cast<size_t>(offset); }

std::string concatenated(std::span<const float> global, std::span<const float> momentum) {
  std::string bytes(global.size_bytes() + momentum.size_bytes(), '\0');
  std::memcpy(bytes.data(), global.data(), global.size_bytes());
  std::memcpy(bytes.data() + global.size_bytes(), momentum.data(), momentum.size_bytes());
  return bytes;
}

}  // namespace

std::string bytes_of(const FragmentOutcome& outcome) {
  return concatenated(outcome.global, outcome.momentum);
}

GlobalState::GlobalState(std::vector<float> global,
                         std::vector<train::Fragment> fragments,
                         int64_t leaf_values)
    : fragments_(std::move(fragments)),
      global_(std::move(global)),
      momentum_(global_.size(), 0.0F),
      kept_error_(global_.size(), 0.0F),
      applied_(fragments_.size(), -1),
      sent_data_(fragments_.size(), 0),
      leaf_values_(leaf_values) {}

std::span<const float> GlobalState::part(const std::vector<float>& values, int64_t fragment) const {
  const train::Fragment& range = fragments_[static_cast<size_t>(fragment)];
  return std::span(values).subspan(static_cast<size_t>(range.begin),
                                   static_cast<size_t>(range.end - range.begin));
}

std::span<float> GlobalState::part(std::vector<float>& values, int64_t fragment) {
  const train::Fragment& range = fragments_[static_cast<size_t>(fragment)];
  return std::span(values).subspan(static_cast<size_t>(range.begin),
                                   static_cast<size_t>(range.end - range.begin));
}

std::string GlobalState::hash() const {
  std::string all = hash_fragment(global_, momentum_, leaf_values_);
  for (const int64_t exchange : applied_) all += fmt::format(" {}", exchange);
  return hash_hex(all);
}

FragmentOutcome GlobalState::outer_step(int64_t fragment,
                                        std::span<const float> mean,
                                        const OuterOptions& options) const {
  PELAGO_ASSERT(mean.size() == part(global_, fragment).size(), "the mean covers the fragment");
  FragmentOutcome outcome;
  outer_step_of_part(fragment, 0, mean, options, outcome);
  outcome.hash = hash_of(outcome);
  return outcome;
}

void GlobalState::outer_step_of_part(int64_t fragment,
                                     int64_t begin,
                                     std::span<const float> mean,
                                     const OuterOptions& options,
                                     FragmentOutcome& outcome) const {
  const auto first = static_cast<size_t>(begin);
  const std::span<const float> global = part(global_, fragment);
  const std::span<const float> momentum = part(momentum_, fragment);
  PELAGO_ASSERT(first + mean.size() <= global.size(), "the part lies within the fragment");
  const auto lr = static_cast<float>(options.lr);
  const auto decay = static_cast<float>(options.momentum);
  outcome.global.resize(global.size());
  outcome.momentum.resize(global.size());
  for (size_t i = 0; i < mean.size(); ++i) {
    const float kept = decay * momentum[first + i];
    const float velocity = kept + mean[i];
    const float ahead = decay * velocity;
    const float update = lr * (mean[i] + ahead);
    outcome.momentum[first + i] = velocity;
    outcome.global[first + i] = global[first + i] - update;
  }
}

void GlobalState::apply(int64_t fragment, int64_t exchange, const FragmentOutcome& outcome) {
  const std::span<float> global = part(global_, fragment);
  PELAGO_ASSERT(outcome.global.size() == global.size() && outcome.momentum.size() == global.size(),
                "an outcome covers its fragment");
  std::copy(outcome.global.begin(), outcome.global.end(), global.begin());
  std::copy(outcome.momentum.begin(), outcome.momentum.end(), part(momentum_, fragment).begin());
  applied_[static_cast<size_t>(fragment)] = exchange;
}

void GlobalState::keep_error(int64_t fragment, std::span<const float> error, int64_t sent_data) {
  const std::span<float> kept = part(kept_error_, fragment);
  std::fill(kept.begin(), kept.end(), 0.0F);
  std::copy(error.begin(), error.end(), kept.begin());
  sent_data_[static_cast<size_t>(fragment)] = sent_data;
}

std::string GlobalState::to_bytes(int64_t fragment) const {
  return concatenated(part(global_, fragment), part(momentum_, fragment));
}

std::vector<std::string> GlobalState::leaf_hashes(int64_t fragment) const {
  return hash_leaves(part(global_, fragment), part(momentum_, fragment), leaf_values_);
}

LeafLayout GlobalState::leaf_layout(int64_t fragment) const {
  return LeafLayout(static_cast<int64_t>(part(global_, fragment).size()), leaf_values_);
}

std::string GlobalState::leaf(int64_t fragment, int64_t leaf_idx) const {
  const train::Fragment range = leaf_layout(fragment).bytes(leaf_idx);
  const std::span<const float> global = part(global_, fragment);
  const auto border = static_cast<int64_t>(global.size_bytes());
  const bool is_global = range.begin < border;
  const auto values = std::as_bytes(is_global ? global : part(momentum_, fragment));
  const auto* bytes = reinterpret_cast<const char*>(values.data());
  return {bytes + (is_global ? range.begin : range.begin - border), at(range.end - range.begin)};
}

Result<FragmentOutcome> GlobalState::from_bytes(int64_t fragment,
                                                const std::string& bytes,
                                                const std::string& hash) const {
  const size_t num_values = part(global_, fragment).size();
  if (bytes.size() != 2 * num_values * sizeof(float)) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("fragment {} of {} bytes, expected {}",
                             fragment,
                             bytes.size(),
                             2 * num_values * sizeof(float))};
  }
  FragmentOutcome outcome;
  outcome.global.resize(num_values);
  outcome.momentum.resize(num_values);
  std::memcpy(outcome.global.data(), bytes.data(), num_values * sizeof(float));
  std::memcpy(outcome.momentum.data(),
              bytes.data() + num_values * sizeof(float),
              num_values * sizeof(float));
  outcome.hash = hash_of(outcome);
  if (outcome.hash != hash) {
    return Error{ErrorCode::kCorrupt, fmt::format("fragment {}: the hash differs", fragment)};
  }
  const auto is_finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(outcome.global.begin(), outcome.global.end(), is_finite)) {
    return Error{ErrorCode::kCorrupt, fmt::format("fragment {}: not finite", fragment)};
  }
  return outcome;
}

void GlobalState::restore(std::span<const float> global,
                          std::span<const float> momentum,
                          std::span<const float> kept_error,
                          std::vector<int64_t> applied,
                          std::vector<int64_t> sent_data) {
  PELAGO_ASSERT(global.size() == global_.size() && momentum.size() == global_.size() &&
                    kept_error.size() == global_.size() && applied.size() == fragments_.size() &&
                    sent_data.size() == fragments_.size(),
                "the caller has compared the shapes");
  global_.assign(global.begin(), global.end());
  momentum_.assign(momentum.begin(), momentum.end());
  kept_error_.assign(kept_error.begin(), kept_error.end());
  applied_ = std::move(applied);
  sent_data_ = std::move(sent_data);
}

void GlobalState::set_sent_data(int64_t data_step) {
  std::fill(sent_data_.begin(), sent_data_.end(), data_step);
}

}  // namespace pelago::sites
