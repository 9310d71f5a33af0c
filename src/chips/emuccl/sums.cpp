#include "chips/emuccl/sums.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace pelago::emuccl {
namespace {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

float widened(Bfloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

float widened(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000U) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fU;
  const uint32_t fraction = value.bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  }
  const float tiny = static_cast<float>(fraction) * 0x1p-24F;  // zero and subnormals, exactly
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(tiny));
}

float widened(float value) { return value; }
double widened(double value) { return value; }

void narrow(float value, Bfloat16& to) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) {
    to.bits = 0x7fc0;
    return;
  }
  to.bits = static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

void narrow(float value, Float16& to) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const float size = std::fabs(value);
  if (!(size < 65520.0F)) {  // NaN, infinity, and what rounds to infinity
    to.bits = static_cast<uint16_t>(sign | (std::isnan(value) ? 0x7e00U : 0x7c00U));
    return;
  }
  if (size < 0x1p-14F) {  // a subnormal: a multiple of 2^-24, to which the addition rounds
    const auto rounded = std::bit_cast<uint32_t>(size + 0.5F) - std::bit_cast<uint32_t>(0.5F);
    to.bits = static_cast<uint16_t>(sign | rounded);
    return;
  }
  const uint32_t magnitude = (bits & 0x7fffffffU) - (uint32_t{112} << 23);
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  to.bits = static_cast<uint16_t>(sign | (rounded >> 13));
}

void narrow(float value, float& to) { to = value; }
void narrow(double value, double& to) { to = value; }

template <typename Value, typename Partial>
void add(
    emucclRedOp_t op, bool is_first_rank, const Value* values, size_t count, Partial* partial) {
  if (is_first_rank) {
    for (size_t i = 0; i < count; ++i) partial[i] = widened(values[i]);
  } else if (op == emucclSum) {
    for (size_t i = 0; i < count; ++i) partial[i] += widened(values[i]);
  } else {
    for (size_t i = 0; i < count; ++i) {
      const Partial value = widened(values[i]);
      if (value > partial[i] || std::isnan(value)) partial[i] = value;  // NaN stays, wherever it is
    }
  }
}

/// Calls visit(Value*, Partial*) with null pointers of the types that the dtype stands for.
template <typename Visit>
void with_types(emucclDataType_t dtype, Visit visit) {
  switch (dtype) {
    case emucclFloat32:
      return visit(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case emucclFloat64:
      return visit(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case emucclFloat16:
      return visit(static_cast<Float16*>(nullptr), static_cast<float*>(nullptr));
    case emucclBfloat16:
      return visit(static_cast<Bfloat16*>(nullptr), static_cast<float*>(nullptr));
    case emucclUint8:
      return;
  }
}

}  // namespace

size_t bytes_of(emucclDataType_t dtype) {
  switch (dtype) {
    case emucclUint8:
      return 1;
    case emucclFloat16:
    case emucclBfloat16:
      return 2;
    case emucclFloat32:
      return 4;
    case emucclFloat64:
      return 8;
  }
  return 0;
}

size_t bytes_of_partial(emucclDataType_t dtype) {
  size_t num_bytes = 0;
  with_types(dtype, [&]<typename Value, typename Partial>(Value*, Partial*) {
    num_bytes = sizeof(Partial);
  });
  return num_bytes;
}

void add_values(emucclDataType_t dtype,
                emucclRedOp_t op,
                bool is_first_rank,
                const void* values,
                size_t count,
                void* partial) {
  with_types(dtype, [&]<typename Value, typename Partial>(Value*, Partial*) {
    add(op,
        is_first_rank,
        static_cast<const Value*>(values),
        count,
        static_cast<Partial*>(partial));
  });
}

void round_values(emucclDataType_t dtype, const void* partial, size_t count, void* to) {
  with_types(dtype, [&]<typename Value, typename Partial>(Value*, Partial*) {
    const auto* from = static_cast<const Partial*>(partial);
    auto* narrowed = static_cast<Value*>(to);
    for (size_t i = 0; i < count; ++i) narrow(from[i], narrowed[i]);
  });
}

}  // namespace pelago::emuccl
