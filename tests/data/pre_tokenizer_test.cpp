#include "data/bpe/pre_tokenizer.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "data/property.h"
#include "data/test_text.h"

namespace pelago::data {
namespace {

std::vector<std::string> pieces_of(const PreTokenizer& pre_tokenizer, std::string_view text) {
  PieceCursor cursor(pre_tokenizer);
  cursor.start(text);
  std::vector<std::string> pieces;
  for (std::string_view piece; cursor.next(piece);) pieces.emplace_back(piece);
  return pieces;
}

std::vector<std::string> pieces_of(std::string_view pattern, std::string_view text) {
  return pieces_of(PreTokenizer({std::string(pattern)}), text);
}

/// Strings of fragments at which the alternatives of the patterns part ways.
rc::Gen<std::string> tricky_text() {
  static const std::vector<std::string> kFragments = {"a",
                                                      "Z",
                                                      "s",
                                                      "'s",
                                                      "'S",
                                                      "'ll",
                                                      "'re",
                                                      "'",
                                                      "''",
                                                      " ",
                                                      "  ",
                                                      "\t",
                                                      "\n",
                                                      "\r",
                                                      "\v",
                                                      "1",
                                                      "22",
                                                      "4444",
                                                      ".",
                                                      "->",
                                                      "_",
                                                      "\x01",
                                                      "é",
                                                      "ſ",
                                                      "'ſ",
                                                      "变",
                                                      "٣",
                                                      "²",
                                                      "\u00a0",
                                                      "\u3000",
                                                      "—",
                                                      "e\u0301",
                                                      "\u2028",
                                                      "😀",
                                                      "K",
                                                      "\x80",
                                                      "\xc3",
                                                      "\xed\xa0\x80",
                                                      "\xf4\x90\x80\x80",
                                                      "\xff",
                                                      std::string(1, '\0')};
  return rc::gen::map(rc::gen::container<std::vector<std::string>>(rc::gen::elementOf(kFragments)),
                      [](const std::vector<std::string>& fragments) {
                        std::string text;
                        for (const auto& fragment : fragments) text += fragment;
                        return text;
                      });
}

TEST_CASE("Llama 3's pattern cuts code and prose where Hugging Face's library cuts them") {
  using Pieces = std::vector<std::string>;
  CHECK(pieces_of(kLlama3Pattern, "I'm 12345 it'LL") ==
        Pieces{"I", "'m", " ", "123", "45", " it", "'LL"});
  CHECK(pieces_of(kLlama3Pattern, "  x = y->next;\n\n  return 0;\n") ==
        Pieces{" ", " x", " =", " y", "->", "next", ";\n\n", " ", " return", " ", "0", ";\n"});
  CHECK(pieces_of(kLlama3Pattern, "\t\tif (a_b)   ") ==
        Pieces{"\t", "\tif", " (", "a", "_b", ")", "   "});
}

TEST_CASE("Qwen 2's pattern gives every digit a piece of its own") {
  CHECK(pieces_of(kQwen2Pattern, "v12") == std::vector<std::string>{"v", "1", "2"});
}

TEST_CASE("GPT-2's pattern keeps a number and its blank together") {
  CHECK(pieces_of(kGpt2Pattern, "x 1234\n y") ==
        std::vector<std::string>{"x", " 1234", "\n", " y"});
}

TEST_CASE("bytes that are not UTF-8 are a piece of their own") {
  CHECK(pieces_of(kLlama3Pattern,
                  "ab\xff\xfe"
                  "cd\xc3") == std::vector<std::string>{"ab", "\xff\xfe", "cd", "\xc3"});
}

TEST_CASE("what no pattern matches is a piece of its own") {
  CHECK(pieces_of("[a-c]+", "xxabyyczz") == std::vector<std::string>{"xx", "ab", "yy", "c", "zz"});
}

TEST_CASE("patterns are applied one after another") {
  const PreTokenizer pre_tokenizer({"\\p{N}", "[a-z]"});
  CHECK(pieces_of(pre_tokenizer, "ab1--2") == std::vector<std::string>{"a", "b", "1", "--", "2"});
}

TEST_CASE("a pattern that is no regular expression is refused with its place") {
  CHECK_THROWS_WITH_AS(PreTokenizer({"a(b"}),
                       "pre-tokenizer pattern a(b: missing closing parenthesis at character 3",
                       Failure);
}

TEST_CASE("the hand-written path cuts as PCRE2 does and no byte is lost") {
  for (const std::string_view pattern : {kLlama3Pattern, kQwen2Pattern}) {
    const PreTokenizer fast({std::string(pattern)});
    const PreTokenizer plain({std::string(pattern)}, {.use_fast_path = false});
    CHECK(holds(/*num_cases=*/1000, [&] {
      const std::string text = *rc::gen::oneOf(tricky_text(), rc::gen::arbitrary<std::string>());
      const auto pieces = pieces_of(fast, text);
      RC_ASSERT(pieces == pieces_of(plain, text));
      std::string joined;
      for (const auto& piece : pieces) {
        RC_ASSERT(!piece.empty());
        joined += piece;
      }
      RC_ASSERT(joined == text);
    }));
  }
}

TEST_CASE("the valid prefix of UTF-8 ends at the first byte that RFC 3629 forbids") {
  CHECK(valid_utf8_prefix_bytes("plain text that is longer than a word") == 37);
  CHECK(valid_utf8_prefix_bytes("é变😀") == 9);
  for (const std::string_view bad : {"\xc0\xaf",
                                     "\xe0\x80\x80",
                                     "\xed\xa0\x80",
                                     "\xf0\x80\x80\x80",
                                     "\xf4\x90\x80\x80",
                                     "\xf5\x80\x80\x80",
                                     "\x80",
                                     "\xe5\x8f"}) {
    CHECK(valid_utf8_prefix_bytes("a" + std::string(bad)) == 1);
  }
}

}  // namespace
}  // namespace pelago::data
