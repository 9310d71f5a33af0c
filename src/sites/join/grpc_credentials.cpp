#include "sites/join/grpc_credentials.h"

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_credentials_options.h>

namespace pelago::sites {

namespace {

// The shortest that gRPC offers: files that have not changed are only looked at.
constexpr unsigned kLookEveryS = 1;

std::shared_ptr<grpc::experimental::CertificateProviderInterface> watch(
    const LineIdentity& identity) {
  const auto path = [&](const std::string& name) { return (identity.certs_dir / name).string(); };
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      path(identity.name + ".key"), path(identity.name + ".pem"), path("ca.pem"), kLookEveryS);
}

}  // namespace

std::shared_ptr<grpc::ServerCredentials> line_server_credentials(const LineIdentity& identity,
                                                                 bool has_door) {
  grpc::experimental::TlsServerCredentialsOptions options(watch(identity));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(has_door
                                    ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                                    : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> line_channel_credentials(const LineIdentity& identity) {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(watch(identity));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace pelago::sites
