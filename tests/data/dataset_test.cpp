#include "data/dataset.h"

#include <doctest/doctest.h>

#include <fstream>

#include "base/error.h"
#include "data/build.h"
#include "data/shards/shard.h"
#include "data/test_text.h"

namespace pelago::data {
namespace {

/// A dataset of forty documents in shards of 1,000 tokens.
class SmallDataset {
 public:
  explicit SmallDataset(const std::string& name) : folder_(name) {
    std::filesystem::create_directories(folder_ / "text");
    for (uint64_t seed = 1; seed <= 40; ++seed) {
      write_plainly(folder_ / "text" / fmt::format("{}.h", seed), code_like_text(seed, 400));
    }
    build_dataset({.from = {folder_ / "text"},
                   .out = path(),
                   .vocab_size = 300,
                   .heldout_ratio = 0.2,
                   .shard_tokens = 1000});
  }
  std::filesystem::path path() const { return folder_ / "set"; }

 private:
  TestFolder folder_;
};

std::string refusal_to_open(const std::filesystem::path& dataset, bool verify) {
  try {
    const TokenStream stream(dataset, "train", verify);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "no failure";
}

TEST_CASE("a stream reads the same tokens across the borders of shards") {
  const SmallDataset dataset("stream");
  const TokenStream stream(dataset.path(), "train", /*verify=*/true);
  REQUIRE(stream.num_tokens() > 3000);
  std::vector<int64_t> whole(static_cast<size_t>(stream.num_tokens()));
  stream.read(0, whole);
  for (const int64_t begin : {int64_t{0}, int64_t{990}, int64_t{1000}, stream.num_tokens() - 20}) {
    std::vector<int64_t> part(20);
    stream.read(begin, part);
    CHECK(std::equal(part.begin(), part.end(), whole.begin() + begin));
  }
  std::vector<int64_t> long_part(2500);  // over three shards
  stream.read(400, long_part);
  CHECK(std::equal(long_part.begin(), long_part.end(), whole.begin() + 400));
}

TEST_CASE("a shard that is missing is named") {
  const SmallDataset dataset("missing");
  std::filesystem::remove(dataset.path() / "train-00001.bin");
  CHECK(refusal_to_open(dataset.path(), false) ==
        (dataset.path() / "train-00001.bin").string() + ": cannot open: No such file or directory");
}

TEST_CASE("a truncated shard is named without reading it whole") {
  const SmallDataset dataset("truncated");
  std::filesystem::resize_file(dataset.path() / "train-00001.bin", 64 + 1998);
  const std::string message = refusal_to_open(dataset.path(), false);
  CHECK(message.find("train-00001.bin: truncated: it holds 999 of 1000 tokens") !=
        std::string::npos);
  std::filesystem::resize_file(dataset.path() / "train-00001.bin", 10);
  CHECK(refusal_to_open(dataset.path(), false).find("train-00001.bin: truncated: 10 bytes") !=
        std::string::npos);
}

TEST_CASE("a shard with one bit changed is named when hashes are verified") {
  const SmallDataset dataset("corrupt");
  const auto path = dataset.path() / "train-00002.bin";
  std::string content = read_text_file(path);
  content[500] = static_cast<char>(content[500] ^ 1);
  std::ofstream(path, std::ios::binary) << content;
  CHECK(refusal_to_open(dataset.path(), true).find("train-00002.bin: corrupt: its hash is not") !=
        std::string::npos);
}

TEST_CASE("a shard of another tokenizer is named") {
  const SmallDataset dataset("foreign");
  const auto path = dataset.path() / "train-00000.bin";
  std::string content = read_text_file(path);
  content[32] = content[32] == 'a' ? 'b' : 'a';
  std::ofstream(path, std::ios::binary) << content;
  CHECK(refusal_to_open(dataset.path(), false).find("train-00000.bin: made with tokenizer") !=
        std::string::npos);
}

TEST_CASE("a tokenizer.json that is not the dataset's is named") {
  const SmallDataset dataset("wrong-tokenizer");
  small_tokenizer().write(dataset.path());
  CHECK(refusal_to_open(dataset.path(), true).find("tokenizer.json: is tokenizer") !=
        std::string::npos);
}

TEST_CASE("a token outside the vocabulary is refused when it is read") {
  const SmallDataset dataset("outside");
  const auto path = dataset.path() / "train-00000.bin";
  std::string content = read_text_file(path);
  content[64 + 11] = '\x7f';  // the high byte of the sixth token
  std::ofstream(path, std::ios::binary) << content;
  const TokenStream stream(dataset.path(), "train", /*verify=*/false);
  std::vector<int64_t> tokens(5);
  CHECK_NOTHROW(stream.read(0, tokens));
  CHECK_THROWS_AS(stream.read(1, tokens), Failure);
}

TEST_CASE("a folder without dataset.json is no dataset, and the remedy is named") {
  const TestFolder folder("none");
  CHECK(refusal_to_open(folder.path(), false).find("not a dataset (no dataset.json)") !=
        std::string::npos);
}

TEST_CASE("dataset.json with a part missing or wrong is a Failure that names it") {
  const SmallDataset dataset("index");
  const auto path = dataset.path() / "dataset.json";
  const std::string good = read_text_file(path);
  for (const char* part : {"\"version\"", "\"splits\"", "\"tokens\"", "\"hash\"", "\"file\""}) {
    std::string bad = good;
    bad.replace(bad.find(part), 2, "\"x");
    std::ofstream(path, std::ios::binary) << bad;
    CHECK(refusal_to_open(dataset.path(), false).starts_with(path.string()));
  }
  std::ofstream(path, std::ios::binary) << good.substr(0, good.size() / 2);
  CHECK(refusal_to_open(dataset.path(), false).starts_with(path.string()));
}

TEST_CASE("a vocabulary past 65536 is kept in four bytes a token") {
  const TestFolder folder("wide");
  const std::string tokenizer_hash(32, 'a');
  for (const auto& [vocab_size, file_bytes] : {std::pair{65536, 64 + 6}, {65537, 64 + 12}}) {
    ShardWriter writer(vocab_size, tokenizer_hash);
    const std::vector<TokenId> tokens = {0, 65535, vocab_size - 1};
    writer.add(tokens);
    const std::string hash = writer.finish(folder / "shard.bin");
    CHECK(std::filesystem::file_size(folder / "shard.bin") == static_cast<size_t>(file_bytes));
    const Shard shard(
        folder / "shard.bin",
        {.num_tokens = 3, .vocab_size = vocab_size, .tokenizer_hash = tokenizer_hash, .hash = hash},
        /*verify=*/true);
    std::vector<int64_t> read(3);
    shard.read(0, read);
    CHECK(read == std::vector<int64_t>(tokens.begin(), tokens.end()));
  }
}

TEST_CASE("one pass over the samples meets every sequence once, whatever their number") {
  for (const int64_t num_sequences : {1, 2, 3, 4, 5, 7, 8, 64, 1000, 1025}) {
    const SampleOrder order(num_sequences, /*seed=*/7);
    for (const int64_t pass : {0, 3}) {
      std::vector<bool> met(static_cast<size_t>(num_sequences));
      for (int64_t i = 0; i < num_sequences; ++i) {
        const int64_t sequence = order.sequence_of(pass * num_sequences + i);
        REQUIRE(sequence >= 0);
        REQUIRE(sequence < num_sequences);
        CHECK(!met[static_cast<size_t>(sequence)]);
        met[static_cast<size_t>(sequence)] = true;
      }
    }
  }
}

TEST_CASE("another pass or another seed is another order") {
  const SampleOrder order(1000, /*seed=*/7);
  const SampleOrder other(1000, /*seed=*/8);
  int same_pass = 0;
  int same_seed = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    same_pass += order.sequence_of(i) == order.sequence_of(1000 + i);
    same_seed += order.sequence_of(i) == other.sequence_of(i);
  }
  CHECK(same_pass < 20);  // 1 is expected of independent orders
  CHECK(same_seed < 20);
}

TEST_CASE("neighbouring samples lie far apart in the corpus") {
  const int64_t num_sequences = 100000;
  const SampleOrder order(num_sequences, /*seed=*/7);
  double mean_distance = 0;
  for (int64_t i = 0; i < 10000; ++i) {
    mean_distance +=
        std::abs(static_cast<double>(order.sequence_of(i) - order.sequence_of(i + 1))) / 10000;
  }
  // Independent uniform draws lie a third of the range apart; 10,000 of them stray by 0.3 %.
  CHECK(mean_distance == doctest::Approx(num_sequences / 3.0).epsilon(0.03));
}

}  // namespace
}  // namespace pelago::data
