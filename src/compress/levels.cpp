#include "compress/levels.h"

#include <algorithm>

#include "base/error.h"
#include "chips/torch.h"

namespace pelago::compress {

namespace {

double level_max(int bits) { return static_cast<double>((int64_t{1} << (bits - 1)) - 1); }

/// values / scales to whole levels within the range. scales: broadcastable, f32; 0 where all are 0.
Tensor to_levels(const Tensor& values, const Tensor& scales, int bits) {
  const double top = level_max(bits);
  const Tensor safe = at::where(scales > 0, scales, at::ones({}, at::kFloat));
  return (values / safe).round_().clamp_(-top - 1, top);
}

/// groups: [..., g] f32. Returns f32 scales [..., 1] that f16 holds.
Tensor best_scales(const Tensor& groups, int bits) {
  const Tensor largest = groups.abs().amax(-1, /*keepdim=*/true);
  const auto rounded = [](const Tensor& scales) {
    return scales.clamp_max(65504.0).to(at::kHalf).to(at::kFloat);
  };
  const Tensor full = rounded(largest / level_max(bits));
  if (bits == 8) return full;
  Tensor best = full;
  Tensor least = at::full_like(largest, std::numeric_limits<float>::infinity());
  for (int step = 0; step <= 12; ++step) {
    const Tensor scales = rounded(full * (1.0 - 0.025 * step));
    const Tensor error =
        (to_levels(groups, scales, bits).mul_(scales).sub_(groups)).square_().sum(-1, true);
    const Tensor is_better = error < least;
    best = at::where(is_better, scales, best);
    least = at::where(is_better, error, least);
  }
  return best;
}

/// levels: f32 [Out,In], signed; scales: f32 [Out,G].
QuantisedMatrix finished(const Tensor& levels, const Tensor& scales, int bits) {
  const int64_t num_outputs = levels.size(0);
  const Tensor numbers =
      (levels.view({num_outputs, scales.size(1), -1}) * scales.unsqueeze(-1)).view_as(levels);
  return {.levels = (levels + (level_max(bits) + 1)).to(at::kByte),
          .scales = scales.to(at::kHalf),
          .numbers = numbers};
}

}  // namespace

QuantisedMatrix round_to_nearest(const Tensor& weight, const model::Quantisation& format) {
  const Tensor groups = weight.reshape({weight.size(0), -1, format.group_size});
  const Tensor scales = best_scales(groups, format.bits);  // [Out,G,1]
  return finished(
      to_levels(groups, scales, format.bits).view_as(weight), scales.squeeze(-1), format.bits);
}

QuantisedMatrix gptq(const Tensor& weight,
                     const Tensor& inputs_squared,
                     const model::Quantisation& format,
                     double damping) {
  const int64_t num_inputs = weight.size(1);
  const int64_t group = format.group_size;
  Tensor hessian = inputs_squared.clone();  // [In,In] f64
  const Tensor diagonal = hessian.diagonal();
  diagonal.masked_fill_(diagonal == 0, 1.0);  // an input that is always 0: any weight will do
  diagonal.add_(damping * diagonal.mean());
  // The upper Cholesky factor of the inverse: row i says how the error of column i spreads.
  const Tensor inverse = at::cholesky_inverse(at::linalg_cholesky(hessian));
  const Tensor spread = at::linalg_cholesky(inverse).t().contiguous().to(at::kFloat);  // [In,In]

  Tensor rest = weight.clone();  // [Out,In]
  const Tensor levels = at::empty_like(rest);
  const Tensor scales = at::empty({weight.size(0), num_inputs / group}, at::kFloat);
  const Tensor errors = at::empty({weight.size(0), group}, at::kFloat);
  for (int64_t begin = 0; begin < num_inputs; begin += group) {
    const Tensor block = rest.narrow(1, begin, group);
    const Tensor scale = best_scales(block, format.bits);  // [Out,1]
    scales.select(1, begin / group).copy_(scale.squeeze(-1));
    for (int64_t i = 0; i < group; ++i) {
      const Tensor column = block.narrow(1, i, 1);  // [Out,1]
      const Tensor level = to_levels(column, scale, format.bits);
      levels.narrow(1, begin + i, 1).copy_(level);
      const Tensor row = spread.select(0, begin + i);
      const Tensor error = (column - level * scale) / row.select(0, begin + i);
      errors.narrow(1, i, 1).copy_(error);
      block.narrow(1, i, group - i)
          .addmm_(error,
                  row.narrow(0, begin + i, group - i).unsqueeze(0),
                  /*beta=*/1,
                  /*alpha=*/-1);
    }
    const int64_t end = begin + group;
    if (end == num_inputs) break;
    rest.narrow(1, end, num_inputs - end)
        .addmm_(errors,
                spread.narrow(0, begin, group).narrow(1, end, num_inputs - end),
                /*beta=*/1,
                /*alpha=*/-1);
  }
  return finished(levels, scales, format.bits);
}

Tensor pack_levels(const Tensor& levels, int bits) {
  Tensor bytes = levels.contiguous();  // [Out,In]
  if (bits == 4) {
    const Tensor pairs = bytes.view({levels.size(0), -1, 2});
    bytes = pairs.select(-1, 0).bitwise_or(pairs.select(-1, 1).bitwise_left_shift(4)).contiguous();
  }
  return bytes.view(at::kInt);
}

}  // namespace pelago::compress
