// What the two sides of a split engine say to one another, a frame each. Both run one build on
// machines of one byte order; a greeting that differs in anything ends the link.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace pelago::serve {

enum class SplitKind : uint32_t {
  kHello = 1,    // prefill side, once: Greeting
  kOrder = 2,    // to the prefill side: some tokens of a prompt; several frames a long one
  kCancel = 3,   // to the prefill side: the request is not needed any more
  kPages = 4,    // to the decode side: one layer of some pages of a request, one after another
  kRefused = 5,  // to the decode side: read this one yourself
};

struct SplitHead {
  SplitKind kind = SplitKind::kHello;
  uint32_t layer_idx = 0;  // kPages
  uint64_t request = 0;
  uint32_t first = 0;       // kOrder: of the tokens here; kPages: of the sequence's pages here
  uint32_t count = 0;       // tokens or pages here
  uint32_t total = 0;       // kOrder: tokens of the prompt that are to be read
  uint32_t first_page = 0;  // kOrder: the first of the sequence's pages that is wanted
};

struct Greeting {
  uint64_t model_key = 0;
  int64_t page_tokens = 0, bytes_per_page = 0, num_layers = 0, vocab_size = 0;
  int64_t tokens_max = 0;  // of a prompt that the prefill side can read
};

/// Returns the frame's bytes. The frame must hold both.
inline size_t put_split(std::span<std::byte> frame,
                        const SplitHead& head,
                        std::span<const std::byte> content = {}) {
  std::memcpy(frame.data(), &head, sizeof head);
  if (!content.empty()) std::memcpy(frame.data() + sizeof head, content.data(), content.size());
  return sizeof head + content.size();
}

/// Absent if the frame is too short for what it claims to be; content is what follows the head.
inline std::optional<SplitHead> read_split(std::span<const std::byte> frame,
                                           std::span<const std::byte>& content) {
  SplitHead head;
  if (frame.size() < sizeof head) return std::nullopt;
  std::memcpy(&head, frame.data(), sizeof head);
  content = frame.subspan(sizeof head);
  return head;
}

}  // namespace pelago::serve
