// One end of a byte stream between a worker and its site's agent, over which messages for ranks of
// other sites pass. A message is a header and bytes; large ones are cut into parts, so that no
// memory of more than a part is taken for what another process announces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace pelago::train {

inline constexpr size_t kBridgePartBytes = 1 << 20;  // 8 ms of a line of 1 Gbit/s

/// Which part of a rank's work a message belongs to. Smaller numbers leave a worker first.
enum class BridgeChannel : uint32_t { kFailure, kControl, kActivations, kReduction, kState };

/// Ranks count through all sites.
struct BridgeHeader {
  int32_t from_rank = 0;
  int32_t to_rank = 0;
  BridgeChannel channel = BridgeChannel::kControl;
  uint32_t tag = 0;
  uint64_t num_bytes = 0;  // of the part that follows
};

class BridgeSocket {
 public:
  BridgeSocket() = default;
  /// Takes over an open descriptor.
  explicit BridgeSocket(int descriptor) : descriptor_(descriptor) {}
  BridgeSocket(BridgeSocket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  BridgeSocket& operator=(BridgeSocket&& other) noexcept;
  ~BridgeSocket();
  /// Throws Failure if the system has no descriptors left.
  static std::pair<BridgeSocket, BridgeSocket> make_pair();

  int descriptor() const { return descriptor_; }
  /// Waits until all of it is on its way. False if the other end is gone.
  bool write(const BridgeHeader& header, std::span<const std::byte> part);
  /// Waits for the next part. False if the other end is gone or what came is no header.
  bool read(BridgeHeader& header, std::string& part);
  /// Wakes whoever waits in read() or write(), which then find the other end gone.
  void shut_down();

 private:
  int descriptor_ = -1;
};

}  // namespace pelago::train
