#include "data/shards/shard.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"

namespace pelago::data {

namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian on disk");

constexpr std::array<char, 8> kMagic = {'P', 'E', 'L', 'A', 'G', 'O', 'T', 'K'};
constexpr const char* kRemedy = "build the dataset anew with pelago data build --fresh";

struct Header {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kShardVersion;
  uint32_t token_bytes = 0;
  uint64_t num_tokens = 0;
  uint64_t vocab_size = 0;
  std::array<char, 32> tokenizer_hash{};  // hex digits
};
static_assert(sizeof(Header) == kShardHeaderBytes);

}  // namespace

int token_bytes_for(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

ShardWriter::ShardWriter(int64_t vocab_size, const std::string& tokenizer_hash)
    : vocab_size_(vocab_size), tokenizer_hash_(tokenizer_hash) {
  PELAGO_ASSERT(tokenizer_hash_.size() == 32, "a hash is 32 hex digits");
  start();
}

void ShardWriter::start() {
  num_tokens_ = 0;
  content_.assign(kShardHeaderBytes, '\0');
}

void ShardWriter::add(std::span<const TokenId> tokens) {
  const auto token_bytes = static_cast<size_t>(token_bytes_for(vocab_size_));
  size_t end = content_.size();
  content_.resize(end + tokens.size() * token_bytes);
  for (const TokenId token : tokens) {
    PELAGO_ASSERT(token >= 0 && token < vocab_size_, "the tokenizer makes tokens it knows");
    std::memcpy(content_.data() + end, &token, token_bytes);
    end += token_bytes;
  }
  num_tokens_ += static_cast<int64_t>(tokens.size());
}

std::string ShardWriter::finish(const std::filesystem::path& path) {
  Header header;
  header.token_bytes = static_cast<uint32_t>(token_bytes_for(vocab_size_));
  header.num_tokens = static_cast<uint64_t>(num_tokens_);
  header.vocab_size = static_cast<uint64_t>(vocab_size_);
  std::memcpy(header.tokenizer_hash.data(), tokenizer_hash_.data(), header.tokenizer_hash.size());
  std::memcpy(content_.data(), &header, sizeof header);
  write_file(path, content_);
  const std::string hash = hash_hex(content_);
  start();
  return hash;
}

Shard::Shard(const std::filesystem::path& path, const ShardExpectation& expected, bool verify)
    : path_(path), file_(path), num_tokens_(expected.num_tokens), vocab_size_(expected.vocab_size) {
  const std::string name = path.string();
  const auto bytes = file_.bytes();
  Header header;
  if (bytes.size() < sizeof header)
    fail("{}: truncated: {} bytes; {}", name, bytes.size(), kRemedy);
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kMagic) fail("{}: not a token shard; {}", name, kRemedy);
  if (header.version != kShardVersion) {
    fail("{}: shard version {}, this program reads {}; {}",
         name,
         header.version,
         kShardVersion,
         kRemedy);
  }
  const std::string made_with(header.tokenizer_hash.data(), header.tokenizer_hash.size());
  if (made_with != expected.tokenizer_hash) {
    fail("{}: made with tokenizer {}, the dataset's is {}; {}",
         name,
         made_with,
         expected.tokenizer_hash,
         kRemedy);
  }
  token_bytes_ = token_bytes_for(vocab_size_);
  if (header.token_bytes != static_cast<uint32_t>(token_bytes_) ||
      header.vocab_size != static_cast<uint64_t>(vocab_size_) ||
      header.num_tokens != static_cast<uint64_t>(num_tokens_)) {
    fail("{}: corrupt: its header says {} tokens of {} bytes, dataset.json {} of {}; {}",
         name,
         header.num_tokens,
         header.token_bytes,
         num_tokens_,
         token_bytes_,
         kRemedy);
  }
  // num_tokens_ comes from dataset.json: divide rather than multiply, which could overflow.
  const size_t num_held = (bytes.size() - sizeof header) / static_cast<size_t>(token_bytes_);
  if (num_held != static_cast<size_t>(num_tokens_) ||
      (bytes.size() - sizeof header) % static_cast<size_t>(token_bytes_) != 0) {
    fail("{}: {}: it holds {} of {} tokens; {}",
         name,
         num_held < static_cast<size_t>(num_tokens_) ? "truncated" : "corrupt",
         num_held,
         num_tokens_,
         kRemedy);
  }
  if (verify && hash_hex(bytes) != expected.hash) {
    fail("{}: corrupt: its hash is not {}; {}", name, expected.hash, kRemedy);
  }
}

void Shard::read(int64_t begin, std::span<int64_t> out) const {
  PELAGO_ASSERT(begin >= 0 && begin + static_cast<int64_t>(out.size()) <= num_tokens_,
                "the range lies inside the shard");
  const std::byte* tokens = file_.bytes().data() + kShardHeaderBytes;
  const auto copy = [&]<typename Token>(Token token) {
    const std::byte* from = tokens + static_cast<size_t>(begin) * sizeof token;
    int64_t largest = 0;
    for (int64_t& wanted : out) {
      std::memcpy(&token, from, sizeof token);
      from += sizeof token;
      wanted = token;
      largest = std::max(largest, wanted);
    }
    if (largest >= vocab_size_) {
      fail("{}: corrupt: token {} in a vocabulary of {}; {}",
           path_.string(),
           largest,
           vocab_size_,
           kRemedy);
    }
  };
  token_bytes_ == 2 ? copy(uint16_t{}) : copy(uint32_t{});
}

}  // namespace pelago::data
