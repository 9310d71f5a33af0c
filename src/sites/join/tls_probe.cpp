#include "sites/join/tls_probe.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <memory>

namespace pelago::sites {

namespace {

template <auto kFree>
struct Freed {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Context = std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>>;
using Connection = std::unique_ptr<BIO, Freed<BIO_free_all>>;

// HTTP/2, as gRPC wants it named.
constexpr std::array<unsigned char, 3> kProtocol = {2, 'h', '2'};

Context context_of(const ProbeOptions& options) {
  Context context(SSL_CTX_new(TLS_client_method()));
  if (!context) fail("OpenSSL cannot make a context");
  const std::unique_ptr<BIO, Freed<BIO_free>> text(
      BIO_new_mem_buf(options.authority.data(), static_cast<int>(options.authority.size())));
  const std::unique_ptr<X509, Freed<X509_free>> authority(
      PEM_read_bio_X509(text.get(), nullptr, nullptr, nullptr));
  if (!authority) fail_usage("the authority's certificate cannot be read; copy it anew");
  X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), authority.get());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_alpn_protos(context.get(), kProtocol.data(), kProtocol.size());
  if (!options.certs_dir.empty()) {
    const auto path = [&](const char* ending) {
      return (options.certs_dir / (options.name + ending)).string();
    };
    SSL_CTX_use_certificate_chain_file(context.get(), path(".pem").c_str());
    SSL_CTX_use_PrivateKey_file(context.get(), path(".key").c_str(), SSL_FILETYPE_PEM);
  }
  return context;
}

void limit_waits(BIO* connection, double timeout_s) {
  int socket = -1;
  BIO_get_fd(connection, &socket);
  const timeval limit{.tv_sec = static_cast<time_t>(timeout_s), .tv_usec = 0};
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

Status refused_by_us(const ProbeOptions& options, long verdict) {
  const char* why = X509_verify_cert_error_string(verdict);
  const char* remedy = verdict == X509_V_ERR_CERT_HAS_EXPIRED
                           ? "renew it there: pelago certs --renew"
                       : verdict == X509_V_ERR_HOSTNAME_MISMATCH
                           ? "another program listens there; see the address"
                           : "it is of another job; take the token or the certificates of this one";
  return Error{ErrorCode::kRefused,
               fmt::format("{}: the certificate of {} is not believed ({}): {}",
                           options.address,
                           options.peer,
                           why,
                           remedy)};
}

Status refused_by_them(const ProbeOptions& options, const std::string& alert) {
  return Error{ErrorCode::kRefused,
               fmt::format("{}: {} does not believe the certificate of {} ({}): it is of another "
                           "job, expired or missing; take one of this job",
                           options.address,
                           options.peer,
                           options.name.empty() ? "this site" : options.name,
                           alert)};
}

}  // namespace

Status probe_line(const ProbeOptions& options) {
  ERR_clear_error();
  const Context context = context_of(options);
  const Connection connection(BIO_new_ssl_connect(context.get()));
  SSL* ssl = nullptr;
  BIO_get_ssl(connection.get(), &ssl);
  SSL_set1_host(ssl, options.peer.c_str());
  SSL_set_hostflags(ssl, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
  BIO_set_conn_hostname(connection.get(), options.address.c_str());
  const bool is_open = BIO_do_connect(connection.get()) == 1;
  if (const long verdict = SSL_get_verify_result(ssl); verdict != X509_V_OK) {
    return refused_by_us(options, verdict);
  }
  if (!is_open) {
    return Error{ErrorCode::kUnavailable, fmt::format("{}: nobody answers", options.address)};
  }
  limit_waits(connection.get(), options.timeout_s);
  // With TLS 1.3 the other end judges our certificate after we think that all is well.
  char first = 0;
  if (BIO_read(connection.get(), &first, 1) == 1) return ok();
  const unsigned long code = ERR_peek_error();
  const char* alert = code == 0 ? nullptr : ERR_reason_error_string(code);
  if (alert == nullptr) {
    return Error{ErrorCode::kUnavailable, fmt::format("{}: closed the line", options.address)};
  }
  return refused_by_them(options, alert);
}

}  // namespace pelago::sites
