#include "serve/text/text_stream.h"

#include <doctest/doctest.h>

#include <string>

#include "base/rng.h"

namespace pelago::serve {
namespace {

TEST_CASE("only whole characters come out, wherever tokens are cut") {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x99\x82z";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    TextStream stream({});
    stream.add(text.substr(0, cut));
    const std::string first = stream.take();
    stream.add(text.substr(cut));
    stream.finish();
    CHECK(first + stream.take() == text);
    const bool is_inside = cut < text.size() && (static_cast<uint8_t>(text[cut]) & 0xC0) == 0x80;
    CHECK((first.size() < cut) == is_inside);
  }
}

TEST_CASE("bytes that are no UTF-8 become replacement characters") {
  const auto text_of = [](std::string_view bytes) {
    TextStream stream({});
    for (const char c : bytes) stream.add(std::string_view(&c, 1));
    stream.finish();
    return stream.take();
  };
  CHECK(text_of("a\xFFz") == "a\uFFFDz");
  CHECK(text_of("a\xC3") == "a\uFFFD");
  CHECK(text_of("\xE2\x82z") == "\uFFFDz");
  CHECK(text_of("\xC0\xAF") == "\uFFFD\uFFFD");            // a shorter form exists
  CHECK(text_of("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");  // a surrogate
  CHECK(text_of("\xF4\x90\x80\x80").size() == 12);         // beyond the last code point
}

TEST_CASE("a text ends before the first stop string, however tokens cut it") {
  const std::string text = "one, two; three. \xE2\x82\xAC END and more";
  const std::vector<std::string> stops = {" END", "END", "three!"};
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    Rng rng = Rng(seed).fork("cuts");
    TextStream stream(stops);
    std::string shown;
    bool has_stopped = false;
    for (size_t begin = 0; begin < text.size() && !has_stopped;) {
      const size_t length = 1 + rng.next_below(6);
      has_stopped = stream.add(text.substr(begin, length));
      begin += length;
      shown += stream.take();
      INFO("seed ", seed);
      CHECK(text.starts_with(shown));
      CHECK(shown.size() <= text.find(" END"));
    }
    stream.finish();
    shown += stream.take();
    CHECK(has_stopped);
    CHECK(shown == text.substr(0, text.find(" END")));
  }
}

TEST_CASE("what might have become a stop string is text in the end") {
  TextStream stream({"stop"});
  CHECK_FALSE(stream.add("do not sto"));
  CHECK(stream.take() == "do not ");
  stream.finish();
  CHECK(stream.take() == "sto");
}

}  // namespace
}  // namespace pelago::serve
