// A job's own certificate authority. Each site has one certificate (EC P-256, its name in CN and
// SAN); whoever holds a key of the job may speak, under its own name only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace pelago::sites {

inline constexpr int64_t kCertificateValidS = 365LL * 24 * 3600;

/// Makes dir with ca.pem, ca.key and NAME.pem, NAME.key for each site and for the coordinator,
/// valid for valid_s from now, keys readable by their owner alone. An authority that is already
/// there is kept and signs what is missing. Throws Failure (exit 2) for a name that is not
/// [A-Za-z0-9._-]+ or is taken by the coordinator, Failure if a file cannot be written.
void make_certificates(const std::filesystem::path& dir,
                       const std::vector<std::string>& sites,
                       int64_t valid_s = kCertificateValidS);

/// What a site asks for a certificate with (PKCS #10, PEM): proof that it has the key at key_path,
/// which is made if it is not there and never leaves the machine. Throws Failure.
std::string make_certificate_request(const std::filesystem::path& key_path,
                                     const std::string& site);
/// SHA-256 of the public key in a request, hex. kCorrupt if it is no request or not signed with
/// that key.
Result<std::string> request_key_hash(const std::string& request_pem);
/// A certificate (PEM) under this site's name for the key of the request, whatever name the request
/// has in it, signed by dir's authority and valid for a year. kCorrupt as above; throws Failure if
/// there is no authority.
Result<std::string> sign_request(const std::filesystem::path& dir,
                                 const std::string& request_pem,
                                 const std::string& site);
/// New certificates from now for every key in dir but the authority's; the keys stay. Each replaces
/// the old one in one move, so that it may be done under a run: open connections go on, new ones
/// take it up within seconds. Returns the names. Throws Failure if dir has no ca.key.
std::vector<std::string> renew_certificates(const std::filesystem::path& dir,
                                            int64_t valid_s = kCertificateValidS);

std::string sha256_hex(std::string_view bytes);
/// From the system's generator for secrets.
std::string random_hex(size_t num_bytes);

/// What is wrong with the certificate or the key of name in dir, one line with the remedy; empty:
/// nothing.
std::string problem_of_identity(const std::filesystem::path& dir, const std::string& name);

struct CertificateCheck {
  std::string name;     // "lingang.pem"
  std::string problem;  // empty: good; else one line with the remedy
};
/// Every certificate and key in dir: missing, expired, not yet valid, signed by another authority,
/// name that does not fit, key that does not fit or is readable by others.
std::vector<CertificateCheck> check_certificates(const std::filesystem::path& dir);

}  // namespace pelago::sites
