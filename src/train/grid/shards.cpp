#include "train/grid/shards.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "chips/torch.h"
#include "train/grid/copies_out.h"

namespace pelago::train {

namespace {

/// Offsets of a bucket that lie side by side.
struct Range {
  int64_t begin = 0, end = 0;
};

std::vector<Range> ranges_in(const Bucket& bucket, const RunFilter& filter) {
  std::vector<Range> ranges;
  for_each_run(bucket, filter, [&](int64_t offset, int64_t /*global*/, int64_t length) {
    if (ranges.empty() || ranges.back().end != offset) ranges.push_back({offset, offset});
    ranges.back().end = offset + length;
  });
  return ranges;
}

/// Copies [begin, end) of the bucket, which lies within the filter, from the host vector.
Tensor from_host(const Bucket& bucket, RunFilter filter, Range range, std::span<const float> host) {
  Tensor values = torch::empty({range.end - range.begin}, torch::kFloat32);
  auto* out = values.data_ptr<float>();
  filter.begin = range.begin;
  filter.end = range.end;
  for_each_run(bucket, filter, [&](int64_t offset, int64_t global, int64_t length) {
    std::copy_n(host.begin() + global, length, out + (offset - range.begin));
  });
  return values;
}

/// visit(value of the bucket, its place in the model) for the range; values: [end - begin] f32,
/// host.
template <typename Visit>
void for_each_value_run(
    const Bucket& bucket, RunFilter filter, Range range, const Tensor& values, const Visit& visit) {
  const auto* from = values.data_ptr<float>();
  filter.begin = range.begin;
  filter.end = range.end;
  for_each_run(bucket, filter, [&](int64_t offset, int64_t global, int64_t length) {
    visit(std::span<const float>(from + (offset - range.begin), static_cast<size_t>(length)),
          global);
  });
}

}  // namespace

Shards::Shards(std::vector<Bucket> buckets,
               std::vector<chips::Collective::Slice> own_slices,
               int64_t num_values,
               chips::Device& device,
               const ShardOptions& options)
    : buckets_(std::move(buckets)), own_slices_(std::move(own_slices)), options_(options) {
  const auto f32 = torch::TensorOptions().dtype(torch::kFloat32).device(device.torch_device());
  weights_ = torch::zeros({num_values}, f32.dtype(options.weights_dtype));
  gradient_ = torch::zeros({num_values}, f32);
  const bool is_f32 = options.weights_dtype == torch::kFloat32;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Bucket& bucket = buckets_[i];
    Kept kept;
    kept.end = bucket.num_values;
    if (options.slices_optimizer) {
      kept.begin = own_slices_[i].begin;
      kept.end = own_slices_[i].end;
    }
    const bool is_view = bucket.local_begin >= 0;
    const int64_t length = kept.end - kept.begin;
    kept.weights = is_view ? weights_.narrow(0, bucket.local_begin, bucket.num_values)
                           : torch::zeros({bucket.num_values}, weights_.options());
    kept.master = is_f32 ? kept.weights.narrow(0, kept.begin, length) : torch::zeros({length}, f32);
    kept.m = torch::zeros({length}, f32);
    kept.v = torch::zeros({length}, f32);
    kept_.push_back(std::move(kept));
    gradients_.push_back(is_view ? gradient_.narrow(0, bucket.local_begin, bucket.num_values)
                                 : Tensor());
  }
}

void Shards::take_weights(size_t bucket_idx,
                          const RunFilter& filter,
                          std::span<const float> master) {
  const Bucket& bucket = buckets_[bucket_idx];
  Kept& kept = kept_[bucket_idx];
  for (const Range& part : ranges_in(bucket, filter)) {
    const Tensor values = from_host(bucket, filter, part, master).to(weights_.device());
    kept.weights.narrow(0, part.begin, part.end - part.begin).copy_(values);
  }
}

/// Of the filter, what this rank keeps.
void Shards::take_kept(size_t bucket_idx,
                       RunFilter filter,
                       std::span<const float> from,
                       Tensor& to) {
  const Kept& kept = kept_[bucket_idx];
  filter.begin = std::max(filter.begin, kept.begin);
  filter.end = std::min(filter.end, kept.end);
  if (filter.begin >= filter.end) return;
  for (const Range& part : ranges_in(buckets_[bucket_idx], filter)) {
    Tensor place = to.narrow(0, part.begin - kept.begin, part.end - part.begin);
    if (from.empty()) {
      place.zero_();
    } else {
      place.copy_(from_host(buckets_[bucket_idx], filter, part, from));
    }
  }
}

void Shards::read_weights(std::span<const float> master, const Fragment& range) {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const RunFilter all{0, buckets_[i].num_values, range.begin, range.end};
    take_weights(i, all, master);
    scatter_bucket(buckets_[i], kept_[i].weights, weights_);
    take_kept(i, all, master, kept_[i].master);
  }
}

void Shards::read(const HostState& state, const Fragment& range) {
  read_weights(state.master, range);
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const RunFilter all{0, buckets_[i].num_values, range.begin, range.end};
    take_kept(i, all, state.m, kept_[i].m);
    take_kept(i, all, state.v, kept_[i].v);
  }
}

// The bits of a vector are laid out as a table, whose rows and columns are summed as whole numbers
// on the device, where every chip sums alike, and only the sums go to the host. Whatever differs in
// one element, or in two, changes a sum.
uint64_t Shards::digest(size_t bucket_idx) const {
  constexpr int64_t kColumns = 1024;
  const torch::NoGradGuard no_grad;
  const Kept& kept = kept_[bucket_idx];
  std::string all;
  for (const Tensor& values : {kept.master, kept.m, kept.v}) {
    const Tensor bits = values.view(torch::kInt32);  // [n]
    const int64_t num_rows = bits.numel() / kColumns;
    const Tensor table = bits.narrow(0, 0, num_rows * kColumns).view({num_rows, kColumns});
    const Tensor rest = bits.narrow(0, num_rows * kColumns, bits.numel() % kColumns);
    const Tensor sums = torch::cat({table.sum(0, false, torch::kInt64),
                                    table.sum(1, false, torch::kInt64),
                                    rest.to(torch::kInt64)})
                            .cpu();
    all += hash_hex(
        std::as_bytes(std::span(sums.data_ptr<int64_t>(), static_cast<size_t>(sums.numel()))));
  }
  return std::stoull(hash_hex(all).substr(0, 16), nullptr, 16);
}

void Shards::read_others(const HostState& state) {
  const torch::NoGradGuard no_grad;
  const auto num_values = static_cast<int64_t>(state.master.size());
  for (size_t i = 0; i < buckets_.size(); ++i) {
    Kept& kept = kept_[i];
    const RunFilter before{0, own_slices_[i].begin, 0, num_values};
    const RunFilter after{own_slices_[i].end, buckets_[i].num_values, 0, num_values};
    for (const RunFilter& others : {before, after}) {
      if (others.begin >= others.end) continue;
      take_weights(i, others, state.master);
      take_kept(i, others, state.master, kept.master);
      take_kept(i, others, state.m, kept.m);
      take_kept(i, others, state.v, kept.v);
    }
    scatter_bucket(buckets_[i], kept.weights, weights_);
  }
}

void Shards::write_gradient(std::span<float> out) const {
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Range slice{own_slices_[i].begin, own_slices_[i].end};
    const RunFilter own{slice.begin, slice.end, 0, static_cast<int64_t>(out.size())};
    if (slice.begin == slice.end) continue;
    const Tensor host =
        gradients_[i].narrow(0, slice.begin, slice.end - slice.begin).to(torch::kCPU);
    for_each_value_run(
        buckets_[i], own, slice, host, [&](std::span<const float> values, int64_t global) {
          std::copy(values.begin(), values.end(), out.begin() + global);
        });
  }
}

void Shards::write(const HostState& state, const Fragment& range) const {
  write_own(
      kept_, state, range, [](const Tensor& values, Take take) { take(values.to(torch::kCPU)); });
}

void Shards::write_behind(const HostState& state,
                          chips::Device& device,
                          const chips::WorkMark& after) const {
  const Fragment whole{0, static_cast<int64_t>(state.master.size())};
  CopiesOut out(device, after);
  write_own(kept_, state, whole, [&](const Tensor& values, Take take) {
    out.add(values, std::move(take));
  });
  out.finish();
}

struct Shards::Copies {
  std::vector<Kept> kept;
};

int64_t Shards::copy_bytes() const {
  int64_t num_values = 0;
  for (const chips::Collective::Slice& own : own_slices_) num_values += own.end - own.begin;
  return 3 * num_values * static_cast<int64_t>(sizeof(float));
}

std::shared_ptr<const Shards::Copies> Shards::copy_own() const {
  const torch::NoGradGuard no_grad;
  auto copies = std::make_shared<Copies>();
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Kept& kept = kept_[i];
    Kept& copy = copies->kept.emplace_back();
    copy.begin = own_slices_[i].begin;
    copy.end = own_slices_[i].end;
    const auto copy_of = [&](const Tensor& values) {
      return values.narrow(0, copy.begin - kept.begin, copy.end - copy.begin).clone();
    };
    copy.master = copy_of(kept.master);
    copy.m = copy_of(kept.m);
    copy.v = copy_of(kept.v);
  }
  return copies;
}

void Shards::write_copies(const Copies& copies,
                          const HostState& state,
                          chips::Device& device,
                          const chips::WorkMark& after) const {
  const Fragment whole{0, static_cast<int64_t>(state.master.size())};
  CopiesOut out(device, after);
  write_own(copies.kept, state, whole, [&](const Tensor& values, Take take) {
    out.add(values, std::move(take));
  });
  out.finish();
}

void Shards::write_own(const std::vector<Kept>& all_kept,
                       const HostState& state,
                       const Fragment& range,
                       const ToHost& to_host) const {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Kept& kept = all_kept[i];
    const RunFilter own{own_slices_[i].begin, own_slices_[i].end, range.begin, range.end};
    for (const Range& part : ranges_in(buckets_[i], own)) {
      const auto give = [&](const Tensor& from, std::span<float> to) {
        if (to.empty()) return;
        const Tensor piece = from.narrow(0, part.begin - kept.begin, part.end - part.begin);
        to_host(piece, [this, i, own, part, to](const Tensor& host) {
          for_each_value_run(
              buckets_[i], own, part, host, [&](std::span<const float> values, int64_t global) {
                std::copy(values.begin(), values.end(), to.begin() + global);
              });
        });
      };
      give(kept.master, state.master);
      give(kept.m, state.m);
      give(kept.v, state.v);
    }
  }
}

void Shards::write_merged(std::span<float> out,
                          std::span<const float> given,
                          const MergeFactors& factors,
                          const Fragment& range) const {
  const torch::NoGradGuard no_grad;
  const auto keep = static_cast<float>(factors.keep);
  const auto take = static_cast<float>(factors.take);
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Kept& kept = kept_[i];
    const RunFilter own{own_slices_[i].begin, own_slices_[i].end, range.begin, range.end};
    for (const Range& part : ranges_in(buckets_[i], own)) {
      const Tensor host =
          kept.master.narrow(0, part.begin - kept.begin, part.end - part.begin).to(torch::kCPU);
      for_each_value_run(
          buckets_[i], own, part, host, [&](std::span<const float> values, int64_t begin) {
            for (size_t k = 0; k < values.size(); ++k) {
              const size_t place = static_cast<size_t>(begin) + k;
              // 0 * value would keep a NaN alive.
              const float taken = take * given[place];
              out[place] = keep == 0 ? taken : keep * values[k] + taken;
            }
          });
    }
  }
}

void Shards::clear_gradients() { gradient_.zero_(); }

void Shards::collect_gradient(size_t bucket_idx) {
  if (buckets_[bucket_idx].local_begin >= 0) return;
  const torch::NoGradGuard no_grad;
  gradients_[bucket_idx] = gather_bucket(buckets_[bucket_idx], gradient_);
}

double Shards::sum_of_squares() const {
  double sum = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Kept& kept = kept_[i];
    const int64_t length = kept.end - kept.begin;
    if (length == 0) continue;
    const double squares = chips::sum_of_squares(gradients_[i].narrow(0, kept.begin, length));
    const size_t num_copies = options_.slices_optimizer ? 1 : buckets_[i].ranks.size();
    sum += squares / static_cast<double>(num_copies);
  }
  return sum;
}

void Shards::update(const plan::TrainConfig& train, int64_t step, double lr, double grad_scale) {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    Kept& kept = kept_[i];
    const UpdateRange range{kept.begin, kept.end, train.has_muon()};
    for (const UpdateRun& run : update_runs(buckets_[i], range)) {
      if (run.matrix_rows > 0) {
        update_matrix(i, run, train, {.lr = lr, .grad_scale = grad_scale});
        continue;
      }
      const int64_t begin = run.begin - kept.begin;
      const int64_t length = run.end - run.begin;
      Tensor master = kept.master.narrow(0, begin, length);
      Tensor m = kept.m.narrow(0, begin, length);
      Tensor v = kept.v.narrow(0, begin, length);
      Tensor weights = kept.weights.narrow(0, run.begin, length);
      chips::adamw_step(master,
                        gradients_[i].narrow(0, run.begin, length),
                        m,
                        v,
                        weights,
                        {.lr = lr,
                         .beta1 = train.beta1,
                         .beta2 = train.beta2,
                         .eps = train.eps,
                         .weight_decay = run.decays ? train.weight_decay : 0.0,
                         .step = step,
                         .grad_scale = grad_scale});
    }
    if (!options_.slices_optimizer) scatter_bucket(buckets_[i], kept.weights, weights_);
  }
}

/// v stays 0: Muon has no second moment.
void Shards::update_matrix(size_t bucket_idx,
                           const UpdateRun& run,
                           const plan::TrainConfig& train,
                           chips::MuonOptions options) {
  Kept& kept = kept_[bucket_idx];
  const int64_t length = run.end - run.begin;
  const auto matrix = [&](const Tensor& values, int64_t begin) {
    return values.narrow(0, begin, length).view({run.matrix_rows, length / run.matrix_rows});
  };
  Tensor master = matrix(kept.master, run.begin - kept.begin);
  Tensor m = matrix(kept.m, run.begin - kept.begin);
  Tensor weights = matrix(kept.weights, run.begin);
  options.weight_decay = run.decays ? train.weight_decay : 0.0;
  options.grad_norm_max = train.clip_norm;
  chips::muon_step(master, matrix(gradients_[bucket_idx], run.begin), m, weights, options);
}

void Shards::gather_weights(size_t bucket_idx, chips::Collective& group, bool in_f32) {
  if (!options_.slices_optimizer) return;
  const torch::NoGradGuard no_grad;
  Kept& kept = kept_[bucket_idx];
  if (group.num_ranks() > 1) {
    if (in_f32 && options_.weights_dtype != torch::kFloat32) {
      Tensor masters = torch::empty({buckets_[bucket_idx].num_values}, kept.master.options());
      masters.narrow(0, kept.begin, kept.end - kept.begin).copy_(kept.master);
      group.all_gather_slices(masters);
      kept.weights.copy_(masters);
    } else {
      group.all_gather_slices(kept.weights);
    }
  }
  scatter_bucket(buckets_[bucket_idx], kept.weights, weights_);
}

}  // namespace pelago::train
