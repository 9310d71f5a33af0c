#include "data/tokenizer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "data/bpe/encoder.h"
#include "data/bpe/tokenizer_spec.h"
#include "data/property.h"
#include "data/test_text.h"

namespace pelago::data {
namespace {

using Json = nlohmann::ordered_json;

/// All bytes, and "Ġt", "he", "Ġthe"; GPT-2's ids for the bytes.
Json known_json() {
  Json json = Json::parse(to_tokenizer_json(train_bpe(WordCounts(), {.vocab_size = 257})));
  Json& model = json["model"];
  model["vocab"]["Ġt"] = 256;
  model["vocab"]["he"] = 257;
  model["vocab"]["Ġthe"] = 258;
  model["merges"] = {"Ġ t", "h e", "Ġt he"};
  json["added_tokens"][0]["id"] = 259;
  return json;
}

Tokenizer parse(const Json& json) { return Tokenizer::parse(json.dump(), "tokenizer.json"); }

void check_refused(const Json& json, const std::string& message) {
  CHECK_THROWS_WITH_AS(parse(json), ("tokenizer.json: " + message).c_str(), Failure);
}

TEST_CASE("every single byte and every pair of bytes comes back") {
  const Tokenizer tokenizer = small_tokenizer();
  for (int pair = 0; pair < 65536; ++pair) {
    const std::string text = {static_cast<char>(pair >> 8), static_cast<char>(pair & 0xFF)};
    REQUIRE(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("any bytes come back from encode and decode unchanged") {
  const Tokenizer tokenizer = small_tokenizer();
  CHECK(holds(/*num_cases=*/300, [&] {
    std::string text = *rc::gen::arbitrary<std::string>();
    const auto num_parts = *rc::gen::inRange(0, 8);
    for (int i = 0; i < num_parts; ++i) {
      text += code_like_text(*rc::gen::arbitrary<uint64_t>(), *rc::gen::inRange<size_t>(0, 200));
      text += *rc::gen::arbitrary<std::string>();
    }
    const auto tokens = tokenizer.encode(text);
    RC_ASSERT(tokenizer.decode(tokens) == text);
    for (const TokenId token : tokens) RC_ASSERT(token >= 0 && token < tokenizer.vocab_size());
  }));
}

TEST_CASE("merges are done in the order of the list") {
  const Tokenizer tokenizer = parse(known_json());
  CHECK(tokenizer.encode(" the") == std::vector<TokenId>{258});
  CHECK(tokenizer.encode("the") == std::vector<TokenId>{83, 257});  // GPT-2's id of t is 83
  CHECK(tokenizer.encode("a t") == std::vector<TokenId>{64, 256});
  CHECK(tokenizer.vocab_size() == 260);
  CHECK(tokenizer.token_bytes(258) == " the");
}

TEST_CASE("a special token is not recognised in text and decodes to nothing") {
  const Tokenizer tokenizer = parse(known_json());
  CHECK(tokenizer.end_of_text() == 259);
  const auto tokens = tokenizer.encode("<|endoftext|>");
  CHECK(std::find(tokens.begin(), tokens.end(), 259) == tokens.end());
  CHECK(tokenizer.decode(std::vector<TokenId>{64, 259, 64}) == "aa");
  CHECK(tokenizer.special_text(259) == "<|endoftext|>");
}

TEST_CASE("long pieces come out as short ones do") {
  const Tokenizer tokenizer = small_tokenizer();
  const BpeEncoder encoder(tokenizer.spec());
  // With a blank between them the words are the same tokens, one short piece after another.
  std::string text = code_like_text(/*seed=*/3, /*num_bytes=*/64);
  text.resize(64);
  std::vector<TokenId> from_short;
  encoder.encode(text, from_short);
  std::vector<TokenId> from_long;
  encoder.encode(text + '\x01', from_long);  // one byte past the limit, which no merge takes in
  REQUIRE(from_long.size() == from_short.size() + 1);
  from_long.pop_back();
  CHECK(from_long == from_short);
}

TEST_CASE("a long run of one letter does not take time by the square of its length") {
  // By the square, a quarter of a megabyte would take 3e10 steps or a minute.
  const std::string text(1 << 18, 'a');
  const std::vector<std::string_view> documents = {text};
  const std::clock_t begin = std::clock();
  const Tokenizer tokenizer = Tokenizer::from_spec(train_bpe(documents, {.vocab_size = 270}));
  const auto tokens = tokenizer.encode(text);
  // Of processor time, which other work on the machine hardly changes.
  CHECK(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC < 20.0);
  CHECK(tokenizer.decode(tokens) == text);
  CHECK(tokens.size() <= text.size() / 1024);
}

TEST_CASE("threads that share a tokenizer get the same tokens as one alone") {
  const Tokenizer tokenizer = small_tokenizer();
  const std::string text = code_like_text(/*seed=*/5, /*num_bytes=*/50000);
  const auto expected = tokenizer.encode(text);
  std::array<std::vector<TokenId>, 4> found;
  {
    std::vector<std::jthread> threads;
    for (auto& tokens : found) threads.emplace_back([&] { tokens = tokenizer.encode(text); });
  }
  for (const auto& tokens : found) CHECK(tokens == expected);
}

TEST_CASE("a written tokenizer reads back with the same hash and the same tokens") {
  const TestFolder folder("tokenizer-write");
  const Tokenizer tokenizer = small_tokenizer();
  tokenizer.write(folder.path());
  const Tokenizer again = Tokenizer::read(folder / "tokenizer.json");
  CHECK(again.hash() == tokenizer.hash());
  CHECK(again.end_of_text() == tokenizer.end_of_text());
  const std::string text = code_like_text(/*seed=*/9, /*num_bytes=*/5000);
  CHECK(again.encode(text) == tokenizer.encode(text));
  const Json config = Json::parse(read_text_file(folder / "tokenizer_config.json"));
  CHECK(config["tokenizer_class"] == "PreTrainedTokenizerFast");
  CHECK(config["eos_token"] == "<|endoftext|>");
}

TEST_CASE("tokenizer.json has the published fields") {
  const Json json = Json::parse(to_tokenizer_json(small_tokenizer().spec()));
  CHECK(json["version"] == "1.0");
  CHECK(json["added_tokens"][0] == Json::parse(R"({"id": 399, "content": "<|endoftext|>",
    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    "special": true})"));
  const Json& parts = json["pre_tokenizer"]["pretokenizers"];
  CHECK(json["pre_tokenizer"]["type"] == "Sequence");
  CHECK(parts[0]["type"] == "Split");
  CHECK(parts[0]["pattern"]["Regex"] == kLlama3Pattern);
  CHECK(parts[0]["behavior"] == "Isolated");
  CHECK(parts[0]["invert"] == false);
  CHECK(parts[1] == Json::parse(R"({"type": "ByteLevel", "add_prefix_space": false,
    "trim_offsets": true, "use_regex": false})"));
  CHECK(json["decoder"]["type"] == "ByteLevel");
  CHECK(json["model"]["type"] == "BPE");
  CHECK(json["model"]["vocab"]["!"] == 0);
  CHECK(json["model"]["vocab"]["Ġ"] == 220);
  CHECK(json["model"]["merges"][0].is_string());
}

TEST_CASE("merges as pairs mean the same as merges as strings") {
  Json json = known_json();
  const std::string hash = parse(json).hash();
  json["model"]["merges"] = Json::parse(R"([["Ġ", "t"], ["h", "e"], ["Ġt", "he"]])");
  CHECK(parse(json).hash() == hash);
}

TEST_CASE("ByteLevel with use_regex means GPT-2's pattern") {
  Json json = known_json();
  json["pre_tokenizer"] =
      Json::parse(R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})");
  CHECK(parse(json).spec().patterns == std::vector<std::string>{std::string(kGpt2Pattern)});
}

TEST_CASE("a special token that the vocabulary lists too keeps its id, as in GPT-2") {
  Json json = known_json();
  json["model"]["vocab"]["<|endoftext|>"] = 259;
  CHECK(parse(json).end_of_text() == 259);
  json["model"]["vocab"]["<|endoftext|>"] = 300;
  check_refused(json, "token <|endoftext|> has two ids, 259 and 300");
}

TEST_CASE("with ignore_merges a piece that is a token is that token") {
  Json json = known_json();
  json["model"]["vocab"]["hex"] = 260;
  CHECK(parse(json).encode("hex") == std::vector<TokenId>{257, 87});
  json["model"]["ignore_merges"] = true;
  CHECK(parse(json).encode("hex") == std::vector<TokenId>{260});
}

TEST_CASE("what is not supported is refused by name") {
  Json json = known_json();
  json["model"]["type"] = "WordPiece";
  check_refused(json, "model.type WordPiece is not supported; only BPE is");
  json = known_json();
  json["normalizer"] = {{"type", "Lowercase"}};
  check_refused(json, "normalizer Lowercase is not supported");
  json = known_json();
  json["pre_tokenizer"] = {{"type", "Metaspace"}};
  check_refused(json, "pre_tokenizer Metaspace is not supported");
  json = known_json();
  json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true;
  check_refused(json, "pre_tokenizer ByteLevel with add_prefix_space is not supported");
}

TEST_CASE("a vocabulary that contradicts itself is refused by name") {
  Json json = known_json();
  json["model"]["vocab"]["he"] = 256;
  check_refused(json, "token Ġt has id 256, which another token has");
  json = known_json();
  json["model"]["vocab"]["he"] = -1;
  check_refused(json, "token he has id -1, not one of 0 to 1048575");
  json = known_json();
  json["model"]["vocab"].erase("A");
  check_refused(json, "the vocabulary has no token for byte 65; text could be lost");
  json = known_json();
  json["model"]["merges"][1] = "h x";
  check_refused(json, "merge 1 speaks of hx, which is not in the vocabulary");
  json = known_json();
  json["model"]["merges"][1] = "he";
  check_refused(json, "merge 1 is not two tokens: he");
}

TEST_CASE("a damaged tokenizer.json is a Failure that names it, wherever the damage lies") {
  const std::string good = known_json().dump();
  Rng rng = Rng(11).fork("damage");
  for (int i = 0; i < 100; ++i) {
    std::string bad = good.substr(0, rng.next_below(good.size()));
    CHECK_THROWS_AS(Tokenizer::parse(bad, "bad.json"), Failure);
  }
  for (const char* path : {"/model",
                           "/model/vocab",
                           "/model/merges",
                           "/pre_tokenizer",
                           "/added_tokens/0/content",
                           "/added_tokens/0/id"}) {
    for (const Json& wrong : {Json(nullptr), Json(7), Json("text"), Json::array({1})}) {
      if (std::string(path).ends_with("id") && wrong == 7) continue;
      if (std::string(path).ends_with("content") && wrong == "text") continue;
      Json json = known_json();
      json[Json::json_pointer(path)] = wrong;
      CHECK_THROWS_AS(parse(json), Failure);
    }
  }
}

}  // namespace
}  // namespace pelago::data
