// Causal attention over keys and values in pages, for any mixture of sequences: one query of a
// sequence that is being generated and hundreds of a prompt go the same way. A page keeps keys and
// values as panels, just as weights lie (chips/packed/panels.h): 16 keys side by side for the
// scores, 16 elements of the values for what they are mixed to. So both products are those of the
// weights.
//
// Scores go by blocks of keys with running maxima (FlashAttention, arXiv:2205.14135); the query
// heads that share a key head are rows of one product (GQA, arXiv:2305.13245), so that generation
// reads each key once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chips/packed/panels.h"

namespace pelago::chips::packed {

enum class PageFormat : uint8_t { kF32, kBf16, kInt8 };

/// What a page holds, and where. All of one layer's key head lies together: keys, values, and of
/// int8 a f32 scale a key and a value.
struct PageLayout {
  PageFormat format = PageFormat::kBf16;
  size_t page_tokens = 32;  // a multiple of 16
  size_t num_layers = 1, key_heads = 1;
  size_t head_dim = 64;  // even

  size_t words_per_key() const;   // of keys' panels: along the head
  size_t words_per_page() const;  // of values' panels: along the keys
  size_t value_panels() const { return (head_dim + kPanel - 1) / kPanel; }
  size_t word_bytes() const { return format == PageFormat::kInt8 ? 2 : 4; }
  size_t keys_bytes() const { return page_tokens * words_per_key() * word_bytes(); }
  size_t values_bytes() const { return value_panels() * kPanel * words_per_page() * word_bytes(); }
  size_t head_bytes() const;  // a multiple of 64
  size_t page_bytes() const { return num_layers * key_heads * head_bytes(); }
  size_t head_offset(size_t layer_idx, size_t key_head) const {
    return (layer_idx * key_heads + key_head) * head_bytes();
  }
};

/// Puts one position's key and value of a head, f32 [E] each, into its page. head: where the
/// layer's key head begins in that page. A page is cleared before its first
/// position comes: weights of keys that are not there yet are 0, but 0 times what was left must be
/// 0.
void put_key_value(const PageLayout& layout,
                   std::byte* head,
                   size_t position,
                   const float* key,
                   const float* value);

/// Rows of queries of one key head of one sequence: row = query * group + head in the group.
struct AttentionJob {
  const PageLayout* layout = nullptr;
  std::span<const int32_t> pages;     // of the sequence, from position 0 on
  const std::byte* memory = nullptr;  // page p at p * page_bytes()
  size_t layer_idx = 0, key_head = 0;
  size_t group = 1;                // query heads a key head
  size_t first_position = 0;       // of query 0
  const float* queries = nullptr;  // query t, head g at t * query_stride + g * E; rotated
  size_t query_stride = 0;
  float* out = nullptr;  // laid out alike
  size_t out_stride = 0;
};

/// Memory of one thread for attention, kept between calls.
struct AttentionScratch {
  std::vector<uint32_t> queries, weights, page_words;
  std::vector<float> scores, sums, row;
  std::vector<float> largest, totals;
  std::vector<std::byte> tiles;  // all of it where tiles are AMX's
};

/// Rows of a call at most: some tiles of them share a block of keys.
size_t attention_rows_max(const PageLayout& layout);

/// Rows [begin, end) of the job, at most attention_rows_max() of them.
void attend_rows(const AttentionJob& job, size_t begin, size_t end, AttentionScratch& scratch);

}  // namespace pelago::chips::packed
