#include "sites/exchange/exchange_parts.h"

#include <algorithm>

#include "sites/exchange/coding/slice_codec.h"

namespace pelago::sites {

namespace {

// Each costs a message to and from every member;
constexpr int64_t kPartsWanted = 16;
// but a slice must fit into a frame, at any width.
constexpr int64_t kPartValuesMax = 8 << 20;

std::span<const float> part_of(std::span<const float> values, const train::Fragment& range) {
  if (values.empty()) return values;
  return values.subspan(static_cast<size_t>(range.begin),
                        static_cast<size_t>(range.end - range.begin));
}

/// The mean direction is one of whole slices: of parts it would be another.
int64_t num_parts_of(const ExchangeSpec& spec, int64_t num_values) {
  if (spec.rule == MergeRule::kDirection) return 1;
  return std::max(std::clamp<int64_t>(num_values / spec.part_values, 1, kPartsWanted),
                  (num_values + kPartValuesMax - 1) / kPartValuesMax);
}

}  // namespace

ExchangeParts::ExchangeParts(const ExchangeSpec& spec,
                             std::span<const float> global,
                             std::span<const float> local,
                             std::span<const float> kept_error)
    : spec_(spec),
      global_(global),
      local_(local),
      kept_error_(kept_error),
      ranges_(cut_slices(static_cast<int64_t>(global.size()),
                         num_parts_of(spec, static_cast<int64_t>(global.size())),
                         slice_unit(spec.bits))) {
  PELAGO_ASSERT(
      local.size() == global.size() && (kept_error.empty() || kept_error.size() == global.size()),
      "a fragment has one length");
  std::erase_if(ranges_, [](const train::Fragment& range) { return range.begin == range.end; });
}

int64_t ExchangeParts::begin_next() {
  PELAGO_ASSERT(has_more(), "a part is left");
  const train::Fragment& next = range(num_begun());
  begun_.push_back(std::make_unique<FragmentExchange>(
      spec_, part_of(global_, next), part_of(local_, next), part_of(kept_error_, next)));
  return num_begun() - 1;
}

train::Fragment ExchangeParts::my_slice(int64_t idx) const {
  const train::Fragment& slice = part(idx).my_slice();
  return {.begin = range(idx).begin + slice.begin, .end = range(idx).begin + slice.end};
}

bool ExchangeParts::has_all_of(int64_t member_idx) const {
  return !has_more() && std::ranges::all_of(begun_, [&](const auto& part) {
    return part->has_mean(member_idx) && (part->has_summed() || part->has_delta(member_idx));
  });
}

bool ExchangeParts::has_summed() const {
  return !has_more() && std::ranges::all_of(begun_, [](const auto& part) {
    return part->has_summed() || part->my_slice().begin == part->my_slice().end;
  });
}

std::vector<float> ExchangeParts::new_error() const {
  std::vector<float> error;
  error.reserve(global_.size());
  for (const auto& part : begun_) {
    error.insert(error.end(), part->new_error().begin(), part->new_error().end());
  }
  return error;
}

}  // namespace pelago::sites
