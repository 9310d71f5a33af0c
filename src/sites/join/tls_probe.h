// Says in one line why two ends cannot speak: gRPC only knows that a connection did not come about.
#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"

namespace pelago::sites {

struct ProbeOptions {
  std::string address;              // "HOST:PORT"
  std::string peer;                 // the name that its certificate must have
  std::string authority;            // PEM
  std::filesystem::path certs_dir;  // with NAME.pem and NAME.key; empty: show no certificate
  std::string name;
  double timeout_s = 5;
};

/// Opens one TLS connection and closes it. kUnavailable: nobody answers (yet). kRefused: one of the
/// two certificates is not believed, with the reason and the remedy.
Status probe_line(const ProbeOptions& options);

}  // namespace pelago::sites
