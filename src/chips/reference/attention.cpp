// Twin of attention: one query after the other, all probabilities written out.
#include <cmath>

#include "chips/reference/reference.h"

namespace pelago::chips::reference {
namespace {

/// Where each head's numbers start.
struct Offsets {
  explicit Offsets(const HeadShape& head_shape) : shape(head_shape) {}
  size_t query(int64_t b, int64_t t, int64_t h) const {
    return static_cast<size_t>(((b * shape.tokens + t) * shape.heads + h) * shape.head_dim);
  }
  size_t key(int64_t b, int64_t t, int64_t h) const {
    const int64_t key_head = h / (shape.heads / shape.key_heads);
    return static_cast<size_t>(((b * shape.all_tokens + t) * shape.key_heads + key_head) *
                               shape.head_dim);
  }
  HeadShape shape;
};

double dot(const double* a, const double* b, int64_t length) {
  double sum = 0;
  for (int64_t i = 0; i < length; ++i) sum += a[i] * b[i];
  return sum;
}

/// Probabilities of the keys that query t may see.
Values probabilities(
    const Values& q, const Values& k, const Offsets& at, int64_t b, int64_t t, int64_t h) {
  const HeadShape& shape = at.shape;
  const int64_t num_seen = shape.all_tokens - shape.tokens + t + 1;
  Values result;
  double largest = -INFINITY;
  for (int64_t j = 0; j < num_seen; ++j) {
    result.push_back(dot(&q[at.query(b, t, h)], &k[at.key(b, j, h)], shape.head_dim) /
                     std::sqrt(static_cast<double>(shape.head_dim)));
    largest = std::max(largest, result.back());
  }
  double sum = 0;
  for (double& value : result) sum += value = std::exp(value - largest);
  for (double& value : result) value /= sum;
  return result;
}

/// Calls visit(b, t, h) for every query.
template <typename Visit>
void for_each_query(const HeadShape& shape, const Visit& visit) {
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t h = 0; h < shape.heads; ++h) visit(b, t, h);
    }
  }
}

}  // namespace

Values attention(const Values& q, const Values& k, const Values& v, const HeadShape& shape) {
  const Offsets at(shape);
  Values out(q.size());
  for_each_query(shape, [&](int64_t b, int64_t t, int64_t h) {
    const Values p = probabilities(q, k, at, b, t, h);
    for (size_t j = 0; j < p.size(); ++j) {
      const double* value = &v[at.key(b, static_cast<int64_t>(j), h)];
      double* row = &out[at.query(b, t, h)];
      for (int64_t i = 0; i < shape.head_dim; ++i) row[i] += p[j] * value[i];
    }
  });
  return out;
}

AttentionGradients attention_backward(const Values& grad_out,
                                      const Values& q,
                                      const Values& k,
                                      const Values& v,
                                      const HeadShape& shape) {
  const Offsets at(shape);
  const double scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  AttentionGradients grads{Values(q.size()), Values(k.size()), Values(v.size())};
  for_each_query(shape, [&](int64_t b, int64_t t, int64_t h) {
    const Values p = probabilities(q, k, at, b, t, h);
    const size_t query = at.query(b, t, h);
    Values grad_p(p.size());
    double along = 0;
    for (size_t j = 0; j < p.size(); ++j) {
      const size_t key = at.key(b, static_cast<int64_t>(j), h);
      grad_p[j] = dot(&grad_out[query], &v[key], shape.head_dim);
      along += p[j] * grad_p[j];
    }
    for (size_t j = 0; j < p.size(); ++j) {
      const size_t key = at.key(b, static_cast<int64_t>(j), h);
      const double grad_score = p[j] * (grad_p[j] - along) * scale;
      for (size_t i = 0; i < static_cast<size_t>(shape.head_dim); ++i) {
        grads.v[key + i] += p[j] * grad_out[query + i];
        grads.q[query + i] += grad_score * k[key + i];
        grads.k[key + i] += grad_score * q[query + i];
      }
    }
  });
  return grads;
}

}  // namespace pelago::chips::reference
