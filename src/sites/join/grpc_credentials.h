// Credentials that follow their files: a certificate that is renewed on disk is shown and believed
// by new connections a second later, while those that are open go on.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace pelago::sites {

struct LineIdentity {
  std::filesystem::path certs_dir;  // ca.pem, NAME.pem, NAME.key
  std::string name;
};

/// has_door: a peer without a certificate may connect; what it may say is the services' to judge.
std::shared_ptr<grpc::ServerCredentials> line_server_credentials(const LineIdentity& identity,
                                                                 bool has_door);
std::shared_ptr<grpc::ChannelCredentials> line_channel_credentials(const LineIdentity& identity);

}  // namespace pelago::sites
