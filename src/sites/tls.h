// A job's own certificate authority. Each site has one certificate (EC P-256, its name in CN and
// SAN); whoever holds a key of the job may speak, under its own name only.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace pelago::sites {

/// Makes dir with ca.pem, ca.key and NAME.pem, NAME.key for each site and for the coordinator,
/// valid for one year, keys readable by their owner alone. An authority that is already there is
/// kept and signs what is missing. Throws Failure (exit 2) for a name that is not [A-Za-z0-9._-]+
/// or is taken by the coordinator, Failure if a file cannot be written.
void make_certificates(const std::filesystem::path& dir, const std::vector<std::string>& sites);

struct CertificateCheck {
  std::string name;     // "lingang.pem"
  std::string problem;  // empty: good; else one line with the remedy
};
/// Every certificate and key in dir: missing, expired, not yet valid, signed by another authority,
/// name that does not fit, key that does not fit or is readable by others.
std::vector<CertificateCheck> check_certificates(const std::filesystem::path& dir);

}  // namespace pelago::sites
