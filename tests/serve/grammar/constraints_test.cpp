#include "serve/grammar/constraints.h"

#include <doctest/doctest.h>

#include <string>

#include "serve/engine/fake_runner.h"
#include "serve/grammar/token_constraint.h"

namespace pelago::serve {
namespace {

Vocabulary byte_vocabulary() {
  static const Vocabulary vocabulary = make_vocabulary(byte_tokenizer(), 260);
  return vocabulary;
}

/// Whether the bytes come through one by one, and the answer may end there.
bool matches(const Result<Constraint>& constraint, std::string_view text) {
  REQUIRE_MESSAGE(constraint.has_value(), constraint.error().message);
  const auto cursor = (*constraint)->start();
  for (const char c : text) {
    const auto token = static_cast<int32_t>(static_cast<uint8_t>(c));
    const auto allowed = cursor->allowed();
    REQUIRE(allowed.has_value());
    if (!is_allowed(**allowed, token)) return false;
    cursor->advance(token);
  }
  return cursor->may_end();
}
bool regex_matches(std::string_view regex, std::string_view text) {
  return matches(regex_constraint(byte_vocabulary(), regex), text);
}
bool fits(std::string_view schema, std::string_view text) {
  return matches(json_schema_constraint(byte_vocabulary(), schema), text);
}
std::string refusal_of(const Result<Constraint>& constraint) {
  return constraint ? "fine" : constraint.error().message;
}
std::string schema_refusal(std::string_view schema) {
  return refusal_of(json_schema_constraint(byte_vocabulary(), schema));
}

/// Draws allowed tokens at random until the answer ends; "" if it has not after 400.
std::string random_answer(const Constraint& constraint, uint64_t seed) {
  Rng rng = Rng(seed).fork("answer");
  const auto cursor = constraint->start();
  std::string text;
  for (int count = 0; count < 400; ++count) {
    const auto mask = cursor->allowed();
    REQUIRE(mask.has_value());
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token < 256; ++token) {
      if (is_allowed(**mask, token)) tokens.push_back(token);
    }
    if (cursor->may_end() && (tokens.empty() || rng.next_below(3) == 0)) return text;
    REQUIRE(!tokens.empty());
    const int32_t token = tokens[rng.next_below(tokens.size())];
    text += static_cast<char>(token);
    cursor->advance(token);
  }
  return "";
}

TEST_CASE("a regex matches the texts that it should and no others") {
  CHECK(regex_matches("ab*c", "abbbc"));
  CHECK(regex_matches("ab*c", "ac"));
  CHECK_FALSE(regex_matches("ab*c", "abb"));
  CHECK_FALSE(regex_matches("ab*c", "abcd"));
  CHECK(regex_matches("(foo|ba[rz]){2}", "foobaz"));
  CHECK_FALSE(regex_matches("(foo|ba[rz]){2}", "foo"));
  CHECK(regex_matches(R"(^\d{3}-\d{4}$)", "555-0199"));
  CHECK_FALSE(regex_matches(R"(\d{2,3})", "1234"));
  CHECK(regex_matches("[^a-c]+", "xyz\xC3\xA9"));
  CHECK_FALSE(regex_matches("[^a-c]+", "xbz"));
  CHECK(regex_matches("[\xC3\xA0-\xC3\xBC]", "\xC3\xA9"));  // a-grave to u-umlaut
  CHECK_FALSE(regex_matches("[\xC3\xA0-\xC3\xBC]", "\xC3\xBF"));
  CHECK(regex_matches(".", "\xF0\x9F\x99\x82"));
  CHECK_FALSE(regex_matches(".", "\xF0\x9F\x99"));
  CHECK_FALSE(regex_matches(".", "\xFF"));
  CHECK(regex_matches("a{0}b", "b"));
  CHECK(regex_matches(R"(\x41\u00e9\[)", "A\xC3\xA9["));
  CHECK(regex_matches("(a*)*b", "aaab"));
  CHECK(regex_matches("", ""));
}

TEST_CASE("a regex that cannot be kept is refused with the place and the reason") {
  const auto refusal = [](std::string_view regex) {
    return refusal_of(regex_constraint(byte_vocabulary(), regex));
  };
  CHECK(refusal("a(b") == "regex: a ')' is missing at byte 3");
  CHECK(refusal("a)b").starts_with("regex: a ) that closes nothing"));
  CHECK(refusal("*a").starts_with("regex: nothing to repeat"));
  CHECK(refusal("[z-a]").starts_with("regex: a range that runs backwards"));
  CHECK(refusal("(a)\\1").starts_with("regex: a reference back to a group"));
  CHECK(refusal("(?=a)").starts_with("regex: (? is known as (?: only"));
  CHECK(refusal("[a").starts_with("regex: a [ without its ]"));
  CHECK(refusal("a{3,2}").starts_with("a repetition of at least 3"));
  CHECK(refusal("\xFF").starts_with("regex: no UTF-8"));
  CHECK(
      refusal("((a{1000}){1000}){1000}").starts_with("the pattern takes more than 300000 states"));
  CHECK(refusal(std::string(100'000, '(')).starts_with("regex: groups nest too deep"));
}

TEST_CASE("a regex whose table would explode costs bounded work") {
  const auto constraint = regex_constraint(byte_vocabulary(), "(a|b)*a(a|b){14}");
  CHECK(matches(constraint, "baa" + std::string(14, 'b')));
  const auto ambiguous = regex_constraint(byte_vocabulary(), "((a?){200}){200}");
  REQUIRE(ambiguous.has_value() == false);
  CHECK(ambiguous.error().message.find("ambiguous") != std::string::npos);
}

TEST_CASE("a schema lets through what fits it and nothing else") {
  const std::string person = R"({"type":"object","properties":{"name":{"type":"string"},
    "age":{"type":"integer","minimum":0,"maximum":150},"tags":{"type":"array","items":
    {"enum":["a","b",3]},"maxItems":2}},"required":["name","age"]})";
  CHECK(fits(person, R"({"name":"Ann","age":42})"));
  CHECK(fits(person, R"({"name": "A\"\u00e9", "age": 150, "tags": ["a", 3]})"));
  CHECK(fits(person, "{\n  \"name\": \"\",\n  \"age\": 0\n}"));
  CHECK_FALSE(fits(person, R"({"name":"Ann"})"));
  CHECK_FALSE(fits(person, R"({"name":"Ann","age":151})"));
  CHECK_FALSE(fits(person, R"({"name":"Ann","age":042})"));
  CHECK_FALSE(fits(person, R"({"name":"Ann","age":42,"tags":["c"]})"));
  CHECK_FALSE(fits(person, R"({"name":"Ann","age":42,"tags":["a","a","a"]})"));
  CHECK_FALSE(fits(person, R"({"name":"Ann","age":42,})"));
  CHECK_FALSE(fits(person, R"({"age":42,"name":"Ann"})"));
  const std::string optional = R"({"properties":{"a":{"type":"null"},"b":{"type":"boolean"}},
    "additionalProperties":{"type":"number"}})";
  for (const char* text : {"{}",
                           R"({"a":null})",
                           R"({"b":true})",
                           R"({"a":null,"b":false})",
                           R"({"z":1.5e3})",
                           R"({"b":true,"z":-1})"}) {
    CHECK_MESSAGE(fits(optional, text), text);
  }
  CHECK_FALSE(fits(optional, R"({"b":true,"a":null})"));
  CHECK_FALSE(fits(optional, R"({,"a":null})"));
}

TEST_CASE("a schema may refer to itself, and any JSON nests as it likes") {
  const std::string tree = R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":
    {"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},
    "required":["v","next"]}}})";
  CHECK(schema_refusal(R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"null"}}})") == "fine");
  CHECK(fits(tree, R"({"v":1,"next":{"v":2,"next":null}})"));
  CHECK_FALSE(fits(tree, R"({"v":1,"next":{"v":2}})"));
  CHECK(fits("true", R"([{"a":[1,{"b":[]}]},"x",null])"));
  CHECK_FALSE(fits("true", R"([{"a":[1,{"b":[}]},"x",null])"));
  const auto object = json_object_constraint(byte_vocabulary());
  CHECK(matches(object, R"({"a": {"b": [1, 2.5, "c"]}})"));
  CHECK_FALSE(matches(object, R"([1])"));
  std::string deep;
  for (int level = 0; level < 100; ++level) deep += "[";
  CHECK(fits("true", deep + std::string(100, ']')));
  // Deeper than any answer needs: not an error, but not allowed either.
  std::string too_deep;
  for (int level = 0; level < 1000; ++level) too_deep += "[";
  CHECK_FALSE(fits("true", too_deep + std::string(1000, ']')));
}

TEST_CASE("strings keep their lengths, patterns and formats inside JSON's quotes") {
  CHECK(fits(R"({"type":"string","minLength":2,"maxLength":3})", R"("\n\u0041é")"));
  CHECK_FALSE(fits(R"({"type":"string","minLength":2,"maxLength":3})", R"("a")"));
  CHECK_FALSE(fits(R"({"type":"string","minLength":2,"maxLength":3})", R"("abcd")"));
  CHECK(fits(R"({"type":"string","pattern":"^a\"b$"})", R"("a\"b")"));
  CHECK(fits(R"({"type":"string","pattern":"b+"})", R"("abbc")"));
  CHECK_FALSE(fits(R"({"type":"string","pattern":"b+"})", R"("ac")"));
  CHECK(fits(R"({"type":"string","format":"date"})", R"("2026-02-28")"));
  CHECK_FALSE(fits(R"({"type":"string","format":"date"})", R"("2026-13-28")"));
  CHECK(fits(R"({"type":["string","null"],"maxLength":1})", "null"));
}

TEST_CASE("numbers stay within their bounds") {
  Rng rng = Rng(3).fork("bounds");
  for (int count = 0; count < 60; ++count) {
    int64_t min = static_cast<int64_t>(rng.next_below(3000)) - 1500;
    int64_t max = min + static_cast<int64_t>(rng.next_below(1500));
    const auto constraint = json_schema_constraint(
        byte_vocabulary(),
        fmt::format(R"({{"type":"integer","minimum":{},"maximum":{}}})", min, max));
    for (int64_t value : {min - 1,
                          min,
                          min + 1,
                          (min + max) / 2,
                          max - 1,
                          max,
                          max + 1,
                          -max,
                          -min,
                          int64_t{0},
                          int64_t{99},
                          int64_t{100}}) {
      INFO(min, " to ", max, " value ", value);
      CHECK(matches(constraint, std::to_string(value)) == (value >= min && value <= max));
    }
  }
  const std::string unit = R"({"type":"number","minimum":-0.5,"maximum":2})";
  for (const char* text : {"0", "1.99", "2", "0.123"}) CHECK_MESSAGE(fits(unit, text), text);
  for (const char* text : {"2.01", "3", "-1", "1e9"}) CHECK_FALSE_MESSAGE(fits(unit, text), text);
  CHECK_FALSE(fits(R"({"type":"integer","exclusiveMinimum":5})", "5"));
  CHECK(fits(R"({"type":"integer","exclusiveMinimum":5})", "6"));
}

TEST_CASE("what a schema asks and cannot be kept is refused by name") {
  CHECK(schema_refusal("{") == "schema: not JSON");
  CHECK(schema_refusal(R"({"type":"strin"})") == "schema: there is no type \"strin\"");
  CHECK(schema_refusal(R"({"type":"array","uniqueItems":true})") ==
        "schema: \"uniqueItems\" is not supported here");
  CHECK(schema_refusal(R"({"not":{}})") == "schema: \"not\" is not supported here");
  CHECK(schema_refusal(R"({"$ref":"#/nowhere"})").find("points nowhere") != std::string::npos);
  CHECK(schema_refusal(R"({"$ref":"http://x"})").find("must point into") != std::string::npos);
  CHECK(schema_refusal(R"({"$ref":"#"})").find("begins with itself") != std::string::npos);
  CHECK(schema_refusal(R"({"type":"object","required":["x"]})").find("no property") !=
        std::string::npos);
  CHECK(schema_refusal(R"({"type":"integer","minimum":5,"maximum":4})").find("at least 5") !=
        std::string::npos);
  CHECK(schema_refusal(R"({"type":"string","maxLength":-1})").find("maxLength") !=
        std::string::npos);
  CHECK(
      schema_refusal(R"({"type":"array","minItems":1000000,"items":{"type":"array","minItems":9}})")
          .find("more than 300000 states") != std::string::npos);
  std::string deep;
  for (int level = 0; level < 5000; ++level) deep += R"({"items":)";
  CHECK(schema_refusal(deep + "true" + std::string(5000, '}')).find("nests") != std::string::npos);
}

TEST_CASE("a grammar's rules refer to each other, and one that begins with itself is refused") {
  const auto sums = grammar_constraint(byte_vocabulary(), R"gbnf(
    # sums in brackets
    root ::= term (" + " term)*
    term ::= [0-9]+ | "(" root ")"
  )gbnf");
  CHECK(matches(sums, "1 + (22 + 3) + 4"));
  CHECK_FALSE(matches(sums, "1 + (22 + 3"));
  const auto refusal = [](std::string_view grammar) {
    return refusal_of(grammar_constraint(byte_vocabulary(), grammar));
  };
  CHECK(refusal("root ::= root \"a\" | \"b\"").find("begins with itself") != std::string::npos);
  CHECK(refusal("root ::= other").find("\"other\" is used but not defined") != std::string::npos);
  CHECK(refusal("other ::= \"a\"") == "grammar: the rule \"root\" is missing");
  CHECK(refusal("root ::= \"a\nroot ::= \"b\"").find("too soon") != std::string::npos);
}

TEST_CASE("whatever a model draws, its answer fits") {
  const auto sums = grammar_constraint(byte_vocabulary(), "root ::= \"(\" [a-c]{0,3} root? \")\"");
  REQUIRE(sums.has_value());
  int num_whole = 0;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const std::string answer = random_answer(*sums, seed);
    if (answer.empty()) continue;
    ++num_whole;
    INFO("seed ", seed, " ", answer);
    CHECK(matches(sums, answer));
  }
  CHECK(num_whole > 30);
}

TEST_CASE("an engine's answer fits its schema, whatever the model wants") {
  const data::Tokenizer tokenizer = byte_tokenizer();
  FakeRunner runner({.num_pages = 64, .max_batch_tokens = 600});
  BatchEngine engine(runner, tokenizer, {.end_tokens = {256}});
  const std::string schema = R"({"type":"object","properties":{"kind":{"enum":["x","yy"]},
    "n":{"type":"integer","minimum":-5,"maximum":12}},"required":["kind","n"]})";
  const auto constraint = json_schema_constraint(byte_vocabulary(), schema);
  REQUIRE(constraint.has_value());
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    GenerateRequest request;
    request.prompt = {1, 2, static_cast<int32_t>(seed)};
    request.max_new_tokens = 120;
    request.sampling.seed = seed;
    request.num_choices = 2;
    request.constraint = *constraint;
    const auto answer = std::make_shared<Answer>();
    REQUIRE(engine.check(request).has_value());
    engine.submit(seed, request, collect(answer));
    while (engine.step()) {
    }
    for (const auto& [idx, choice] : answer->choices) {
      INFO("seed ", seed, " ", choice.text, choice.error);
      CHECK(choice.finish == Finish::kStop);
      CHECK(fits(schema, choice.text));
    }
  }
}

}  // namespace
}  // namespace pelago::serve
