#include "data/dataset.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/error.h"
#include "base/rng.h"
#include "data/shards/dataset_index.h"
#include "data/shards/shard.h"
#include "data/tokenizer.h"

namespace pelago::data {

struct TokenStream::Impl {
  std::vector<Shard> shards;
  std::vector<int64_t> shard_begins;  // in the stream; one more than shards
  int64_t vocab_size = 0;
  int64_t num_text_bytes = 0;
  std::string tokenizer_hash;
  std::string dataset_hash;
};

TokenStream::TokenStream(const std::filesystem::path& dataset_dir,
                         const std::string& split,
                         bool verify)
    : impl_(std::make_unique<Impl>()) {
  const DatasetIndex index = DatasetIndex::read(dataset_dir);
  if (verify) {
    const auto tokenizer_path = dataset_dir / "tokenizer.json";
    const std::string hash = Tokenizer::read(tokenizer_path).hash();
    if (hash != index.tokenizer_hash) {
      fail("{}: is tokenizer {}, but the shards were made with {}; put the dataset's own back",
           tokenizer_path.string(),
           hash,
           index.tokenizer_hash);
    }
  }
  const SplitEntry& entry = index.split(split, dataset_dir);
  impl_->vocab_size = index.vocab_size;
  impl_->num_text_bytes = entry.num_text_bytes;
  impl_->tokenizer_hash = index.tokenizer_hash;
  impl_->dataset_hash = index.dataset_hash();
  impl_->shard_begins.push_back(0);
  for (const ShardEntry& shard : entry.shards) {
    impl_->shards.emplace_back(dataset_dir / shard.file,
                               ShardExpectation{.num_tokens = shard.num_tokens,
                                                .vocab_size = index.vocab_size,
                                                .tokenizer_hash = index.tokenizer_hash,
                                                .hash = shard.hash},
                               verify);
    impl_->shard_begins.push_back(impl_->shard_begins.back() + shard.num_tokens);
  }
}

TokenStream::TokenStream(TokenStream&&) noexcept = default;
TokenStream::~TokenStream() = default;

int64_t TokenStream::num_tokens() const { return impl_->shard_begins.back(); }
int64_t TokenStream::vocab_size() const { return impl_->vocab_size; }
int64_t TokenStream::num_text_bytes() const { return impl_->num_text_bytes; }
const std::string& TokenStream::tokenizer_hash() const { return impl_->tokenizer_hash; }
const std::string& TokenStream::dataset_hash() const { return impl_->dataset_hash; }

void TokenStream::read(int64_t begin, std::span<int64_t> out) const {
  PELAGO_ASSERT(begin >= 0 && begin + static_cast<int64_t>(out.size()) <= num_tokens(),
                "the range lies inside the stream");
  const auto& begins = impl_->shard_begins;
  auto shard_idx = static_cast<size_t>(std::upper_bound(begins.begin(), begins.end() - 1, begin) -
                                       begins.begin() - 1);
  while (!out.empty()) {
    const auto num_wanted = static_cast<int64_t>(out.size());
    const int64_t num_here = std::min(num_wanted, begins[shard_idx + 1] - begin);
    impl_->shards[shard_idx].read(begin - begins[shard_idx],
                                  out.first(static_cast<size_t>(num_here)));
    out = out.subspan(static_cast<size_t>(num_here));
    begin += num_here;
    ++shard_idx;
  }
}

namespace {

// A Feistel network over numbers of num_bits bits: each round mixes one half into the other, which
// can be undone, so it is a permutation whatever the mixer. The halves change places each round;
// with an odd number of bits they differ in width, and after four rounds each has its own again.
uint64_t permute_bits(uint64_t value, int num_bits, uint64_t key) {
  int low_bits = num_bits / 2;
  int high_bits = num_bits - low_bits;
  uint64_t low = value & ((uint64_t{1} << low_bits) - 1);
  uint64_t high = value >> low_bits;
  for (uint64_t round = 0; round < 4; ++round) {
    const uint64_t mixed = Rng::mix(low ^ Rng::mix(key + round * 0x9e3779b97f4a7c15ULL));
    const uint64_t new_low = high ^ (mixed & ((uint64_t{1} << high_bits) - 1));
    high = low;
    low = new_low;
    std::swap(low_bits, high_bits);
  }
  return high << low_bits | low;
}

}  // namespace

SampleOrder::SampleOrder(int64_t num_sequences, uint64_t seed)
    : num_sequences_(num_sequences), seed_(seed) {
  PELAGO_ASSERT(num_sequences > 0, "a dataset smaller than one sequence is refused before this");
}

int64_t SampleOrder::sequence_of(int64_t sample_idx) const {
  PELAGO_ASSERT(sample_idx >= 0, "samples count from zero");
  const auto num_sequences = static_cast<uint64_t>(num_sequences_);
  const auto pass = static_cast<uint64_t>(sample_idx / num_sequences_);
  const int num_bits = static_cast<int>(std::bit_width(num_sequences - 1));
  const uint64_t key = Rng::mix(seed_ + Rng::mix(pass));
  // At least half of [0, 2^num_bits) is wanted, so a walk takes two steps on average. It ends: a
  // permutation's cycles close.
  auto value = static_cast<uint64_t>(sample_idx % num_sequences_);
  do {
    value = permute_bits(value, num_bits, key);
  } while (value >= num_sequences);
  return static_cast<int64_t>(value);
}

}  // namespace pelago::data
