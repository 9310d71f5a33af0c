// Tokens become text that a client can show at once: a token may end inside a character or inside a
// stop string, so what may still change is held back until it cannot. Bytes that are no UTF-8
// become U+FFFD, one for each longest start of a character (Unicode 15, section 3.9).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pelago::serve {

class TextStream {
 public:
  /// stops: none empty; valid UTF-8.
  explicit TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Adds a token's bytes. Returns true if a stop string has come: the text ends before it.
  bool add(std::string_view bytes);
  /// The answer is over: what was held back is text now.
  void finish();
  /// The text that has become certain since the last call; whole characters.
  std::string take();

 private:
  size_t num_held_back() const;

  std::vector<std::string> stops_;
  std::string bytes_;    // the start of a character that is not whole
  std::string pending_;  // whole characters; may be the start of a stop string
  std::string ready_;
};

}  // namespace pelago::serve
