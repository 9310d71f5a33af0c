// One end of a SOCK_SEQPACKET pair: a packet goes whole or not at all, and the end of the process
// at the other side is seen at once.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace pelago::train {

inline constexpr size_t kPacketBytesMax = 64 * 1024;

class PacketSocket {
 public:
  /// Takes over an open descriptor.
  explicit PacketSocket(int descriptor) : descriptor_(descriptor) {}
  PacketSocket(PacketSocket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  PacketSocket& operator=(PacketSocket&& other) noexcept;
  ~PacketSocket();
  /// Throws Failure if the system has no descriptors left.
  static std::pair<PacketSocket, PacketSocket> make_pair();

  int descriptor() const { return descriptor_; }
  /// Returns false if the other end is gone. packet: at most kPacketBytesMax.
  bool send(std::string_view packet);
  /// Waits for a packet; nothing if the other end is gone.
  std::optional<std::string> receive();
  /// Whether the other end is gone and has left nothing to read. Does not wait.
  bool is_at_end() const;
  /// Wakes whoever waits in receive(), which then finds the other end gone.
  void shut_down();
  void close();

 private:
  int descriptor_;
};

}  // namespace pelago::train
