#include <doctest/doctest.h>

#include <algorithm>

#include "base/rng.h"
#include "sites/transport/frame_assembly.h"
#include "sites/transport/send_window.h"

namespace pelago::sites {
namespace {

constexpr int64_t kFrameBytesMax = 4 << 20;

FrameChunk chunk_at(const std::string& payload,
                    uint64_t offset,
                    uint64_t frame = 0,
                    uint64_t session = 1) {
  FrameChunk chunk{.session = session,
                   .frame = frame,
                   .kind = offset == 0 ? 7U : 0U,
                   .head = offset == 0 ? "{}" : "",
                   .frame_payload_bytes = payload.size(),
                   .offset = offset,
                   .payload = std::string_view(payload).substr(offset, kChunkBytes),
                   .oldest = 0,
                   .checksum = 0};
  chunk.checksum = checksum_of(chunk);
  return chunk;
}

std::string noise(size_t num_bytes, uint64_t seed) {
  Rng rng(seed);
  std::string bytes(num_bytes, '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng.next_u64());
  return bytes;
}

TEST_CASE("chunks in any order make the frame, and a chunk that comes twice changes nothing") {
  const std::string payload = noise(3 * kChunkBytes + 5, 1);
  FrameAssembly assembly("a", kFrameBytesMax);
  for (const uint64_t offset : {3 * kChunkBytes, kChunkBytes, kChunkBytes, uint64_t{0}}) {
    auto frames = assembly.add(chunk_at(payload, offset));
    REQUIRE(frames);
    CHECK(frames->empty());
  }
  auto frames = assembly.add(chunk_at(payload, 2 * kChunkBytes));
  REQUIRE(frames);
  REQUIRE(frames->size() == 1);
  CHECK(frames->front().from == "a");
  CHECK(frames->front().kind == 7);
  CHECK(frames->front().payload == payload);
  CHECK(assembly.num_repeated() == 1);
}

TEST_CASE("frames come out in the order in which they were sent") {
  FrameAssembly assembly("a", kFrameBytesMax);
  CHECK(assembly.add(chunk_at("two", 0, 2))->empty());
  CHECK(assembly.add(chunk_at("one", 0, 1))->empty());
  auto frames = assembly.add(chunk_at("zero", 0, 0));
  REQUIRE(frames);
  REQUIRE(frames->size() == 3);
  CHECK((*frames)[0].payload == "zero");
  CHECK((*frames)[2].payload == "two");
}

TEST_CASE("a replayed frame is dropped and counted, in its session and in a later one") {
  FrameAssembly assembly("a", kFrameBytesMax);
  CHECK(assembly.add(chunk_at("x", 0, 0, 1))->size() == 1);
  CHECK(assembly.add(chunk_at("x", 0, 0, 1))->empty());
  CHECK(assembly.add(chunk_at("y", 0, 0, 2))->size() == 1);  // the peer has started again
  CHECK(assembly.add(chunk_at("x", 0, 0, 1))->empty());
  CHECK(assembly.num_repeated() == 2);
}

TEST_CASE("one flipped bit anywhere in a chunk is found") {
  std::string payload = noise(1000, 2);
  const FrameChunk good = chunk_at(payload, 0);
  FrameAssembly assembly("a", kFrameBytesMax);
  const auto is_refused = [&](const FrameChunk& chunk) {
    auto frames = assembly.add(chunk);
    return !frames && frames.error().code == ErrorCode::kCorrupt;
  };
  FrameChunk bad = good;
  bad.kind ^= 1U;
  CHECK(is_refused(bad));
  bad = good;
  bad.frame ^= 1U;
  CHECK(is_refused(bad));
  bad = good;
  bad.session ^= 1U << 30U;
  CHECK(is_refused(bad));
  bad = good;
  bad.head = "{]";
  CHECK(is_refused(bad));
  for (size_t bit = 0; bit < 8 * payload.size(); bit += 61) {
    payload[bit / 8] = static_cast<char>(payload[bit / 8] ^ (1 << (bit % 8)));
    CHECK(is_refused(good));
    payload[bit / 8] = static_cast<char>(payload[bit / 8] ^ (1 << (bit % 8)));
  }
  CHECK(assembly.add(good)->size() == 1);
}

TEST_CASE("lengths of 2^63, chunks that do not fit and frames far ahead are refused") {
  FrameAssembly assembly("a", kFrameBytesMax);
  const auto is_refused = [&](FrameChunk chunk) {
    chunk.checksum = checksum_of(chunk);
    return !assembly.add(chunk);
  };
  const std::string payload = noise(2 * kChunkBytes, 3);
  FrameChunk bad = chunk_at(payload, 0);
  bad.frame_payload_bytes = 1ULL << 63U;
  CHECK(is_refused(bad));
  bad = chunk_at(payload, 0);
  bad.frame_payload_bytes = kFrameBytesMax + 1;
  CHECK(is_refused(bad));
  bad = chunk_at(payload, 0);
  bad.payload = bad.payload.substr(1);
  CHECK(is_refused(bad));
  bad = chunk_at(payload, kChunkBytes);
  bad.offset += 1;
  CHECK(is_refused(bad));
  bad = chunk_at(payload, kChunkBytes);
  bad.offset = 1ULL << 63U;
  CHECK(is_refused(bad));
  bad = chunk_at(payload, 0, kFramesAheadMax);
  CHECK(is_refused(bad));
  // Half a frame, and then another length for it.
  CHECK_FALSE(is_refused(chunk_at(payload, 0)));
  CHECK(is_refused(chunk_at(noise(3 * kChunkBytes, 4), kChunkBytes)));
}

TEST_CASE("half frames hold a bounded amount of memory") {
  FrameAssembly assembly("a", kFrameBytesMax);
  const std::string payload = noise(kFrameBytesMax, 5);
  uint64_t num_held = 0;
  for (uint64_t frame = 0; frame < kFramesAheadMax; ++frame) {
    if (assembly.add(chunk_at(payload, 0, frame))) ++num_held;
  }
  CHECK(num_held * kFrameBytesMax <= kFrameBytesMax + kBytesAheadMax);
}

TEST_CASE("a frame goes on from its last acknowledged chunk when its stream breaks") {
  SendWindow window(1, 8);
  const std::string payload = noise(4 * kChunkBytes, 6);
  REQUIRE(window.push({.from = "a", .kind = 7, .head = "{}", .payload = payload}, 0));
  for (int i = 0; i < 3; ++i) REQUIRE(window.take(0, 0));
  window.on_taken({.receiver = 9, .session = 1, .frame = 0, .offset = 0}, 0.1);
  window.on_broken(0);
  CHECK(window.resent_bytes() == 2 * static_cast<int64_t>(kChunkBytes));
  std::vector<uint64_t> offsets;
  while (const auto outgoing = window.take(1, 0)) offsets.push_back(outgoing->chunk.offset);
  CHECK(offsets == std::vector<uint64_t>{kChunkBytes, 2 * kChunkBytes, 3 * kChunkBytes});
  for (const uint64_t offset : offsets) {
    window.on_taken({.receiver = 9, .session = 1, .frame = 0, .offset = offset}, 0.2);
  }
  CHECK(window.num_frames() == 0);
}

TEST_CASE("a peer that has started anew gets what is not whole from its first chunk") {
  SendWindow window(1, 8);
  const std::string payload = noise(2 * kChunkBytes, 7);
  window.push({.from = "a", .kind = 1, .head = "{}", .payload = "gone"}, 0);
  window.push({.from = "a", .kind = 2, .head = "{}", .payload = payload}, 0);
  for (int i = 0; i < 3; ++i) REQUIRE(window.take(0, 0));
  window.on_taken({.receiver = 9, .session = 1, .frame = 0, .offset = 0}, 0.1);
  window.on_taken({.receiver = 9, .session = 1, .frame = 1, .offset = 0}, 0.1);
  window.on_broken(0);
  FrameAssembly anew("a", kFrameBytesMax);
  std::vector<Frame> came;
  while (auto outgoing = window.take(0, 1)) {
    outgoing->chunk.checksum = checksum_of(outgoing->chunk);
    auto frames = anew.add(outgoing->chunk);
    REQUIRE(frames);
    came.insert(came.end(), frames->begin(), frames->end());
    window.on_taken({.receiver = 10,
                     .session = 1,
                     .frame = outgoing->chunk.frame,
                     .offset = outgoing->chunk.offset},
                    1);
  }
  REQUIRE(came.size() == 1);
  CHECK(came.front().payload == payload);
  CHECK(window.num_frames() == 0);
}

TEST_CASE("small frames go over the first stream, and none before its time") {
  SendWindow window(1, 8);
  REQUIRE(window.push({.from = "a", .kind = 1, .head = "{}", .payload = "x"}, 5));
  CHECK_FALSE(window.take(0, 4.9));
  CHECK_FALSE(window.take(1, 5));
  CHECK(window.take(0, 5));
  for (int i = 0; i < 7; ++i) CHECK(window.push({}, 0));
  CHECK_FALSE(window.push({}, 0));  // full
}

TEST_CASE("whatever breaks, every frame arrives once, whole and in order") {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    SendWindow window(seed + 1, 100);
    FrameAssembly assembly("a", kFrameBytesMax);
    constexpr size_t kFrames = 12;
    for (size_t i = 0; i < kFrames; ++i) {
      const size_t num_bytes = rng.next_u64() % (3 * kChunkBytes);
      window.push({.from = "a",
                   .kind = static_cast<uint32_t>(i),
                   .head = "{}",
                   .payload = std::string(num_bytes, static_cast<char>('a' + i))},
                  0);
    }
    struct OnItsWay {
      int stream;
      OutgoingChunk outgoing;
    };
    std::vector<OnItsWay> line;
    std::vector<Frame> came;
    while (window.num_frames() > 0) {
      const int stream = static_cast<int>(rng.next_u64() % 3);
      const uint64_t chance = rng.next_u64() % 10;
      if (chance == 0) {  // the stream breaks: what it carried may have come, but nobody knows
        window.on_broken(stream);
        std::erase_if(line, [&](const OnItsWay& sent) {
          return sent.stream == stream && rng.next_u64() % 2 == 0;
        });
      } else if (chance < 5) {
        if (auto outgoing = window.take(stream, 1)) line.push_back({stream, *outgoing});
      } else if (!line.empty()) {
        const auto sent = line.begin() + static_cast<std::ptrdiff_t>(rng.next_u64() % line.size());
        FrameChunk chunk = sent->outgoing.chunk;
        chunk.checksum = checksum_of(chunk);
        auto frames = assembly.add(chunk);
        REQUIRE(frames);
        came.insert(came.end(), frames->begin(), frames->end());
        window.on_taken(
            {.receiver = 9, .session = chunk.session, .frame = chunk.frame, .offset = chunk.offset},
            1);
        line.erase(sent);
      }
    }
    REQUIRE(came.size() == kFrames);
    for (size_t i = 0; i < kFrames; ++i) {
      CHECK(came[i].kind == i);
      CHECK(came[i].payload.find_first_not_of(static_cast<char>('a' + i)) == std::string::npos);
    }
  }
}

TEST_CASE("the rate of a line is what was acknowledged while frames waited") {
  SendWindow window(1, 8);
  double now_s = 100;
  for (int round = 0; round < 4; ++round) {
    now_s += 50;  // idle: says nothing
    window.push({.from = "a", .kind = 1, .head = "", .payload = std::string(kChunkBytes * 8, 'x')},
                now_s);
    for (uint64_t idx = 0; idx < 8; ++idx) {
      now_s += 0.05;
      window.on_taken({.receiver = 9,
                       .session = 1,
                       .frame = static_cast<uint64_t>(round),
                       .offset = idx * kChunkBytes},
                      now_s);
    }
  }
  CHECK(window.rate_mbit_s() == doctest::Approx(kChunkBytes * 8e-6 / 0.05).epsilon(0.01));
}

}  // namespace
}  // namespace pelago::sites
