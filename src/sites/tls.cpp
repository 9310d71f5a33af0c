#include "sites/tls.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

namespace fs = std::filesystem;

namespace {

// A site's clock may run behind that of the machine that signs.
constexpr long kBackdateS = 3600;

template <auto kFree>
struct Freed {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;
using Request = std::unique_ptr<X509_REQ, Freed<X509_REQ_free>>;
using Memory = std::unique_ptr<BIO, Freed<BIO_free>>;
using File = std::unique_ptr<FILE, Freed<std::fclose>>;

struct Identity {
  Key key;
  Certificate certificate;
};

void check(bool good, const char* what) {
  if (!good) fail("OpenSSL cannot {}", what);
}

void write_key(const fs::path& path, EVP_PKEY* key) {
  // Made unreadable for others before there is anything in it to read.
  const File file([&] {
    const mode_t before = ::umask(0077);
    FILE* opened = std::fopen(path.c_str(), "wx");
    ::umask(before);
    return opened;
  }());
  if (!file) fail("{}: cannot be written; is it there already?", path.string());
  check(PEM_write_PrivateKey(file.get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1,
        "write a key");
  check(std::fflush(file.get()) == 0 && ::fsync(::fileno(file.get())) == 0, "write a key");
}

void write_certificate(const fs::path& path, X509* certificate) {
  const File file(std::fopen(path.c_str(), "wx"));
  if (!file) fail("{}: cannot be written; is it there already?", path.string());
  check(PEM_write_X509(file.get(), certificate) == 1 && std::fflush(file.get()) == 0,
        "write a certificate");
}

Key read_key(const fs::path& path) {
  const File file(std::fopen(path.c_str(), "r"));
  return file ? Key(PEM_read_PrivateKey(file.get(), nullptr, nullptr, nullptr)) : Key();
}

Certificate read_certificate(const fs::path& path) {
  const File file(std::fopen(path.c_str(), "r"));
  return file ? Certificate(PEM_read_X509(file.get(), nullptr, nullptr, nullptr)) : Certificate();
}

void add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  check(extension != nullptr, "make an extension");
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

/// A certificate for this key, signed by `authority`, or by itself if that is null.
Certificate certify(const std::string& name,
                    EVP_PKEY* key,
                    const Identity* authority,
                    int64_t valid_s = kCertificateValidS) {
  Certificate made(X509_new());
  check(made != nullptr, "make a certificate");
  X509* certificate = made.get();
  X509_set_version(certificate, 2);
  std::unique_ptr<BIGNUM, Freed<BN_free>> serial(BN_new());
  check(BN_rand(serial.get(), 127, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1, "draw a serial");
  BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate));
  X509_gmtime_adj(X509_getm_notBefore(certificate), -kBackdateS);
  X509_gmtime_adj(X509_getm_notAfter(certificate), static_cast<long>(valid_s));
  X509_set_pubkey(certificate, key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate),
                             "CN",
                             MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()),
                             -1,
                             -1,
                             0);
  X509* issuer = authority == nullptr ? certificate : authority->certificate.get();
  X509_set_issuer_name(certificate, X509_get_subject_name(issuer));
  if (authority == nullptr) {
    add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
    add_extension(certificate, issuer, NID_key_usage, "critical,keyCertSign,cRLSign");
  } else {
    add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:FALSE");
    add_extension(certificate, issuer, NID_key_usage, "critical,digitalSignature");
    add_extension(certificate, issuer, NID_ext_key_usage, "serverAuth,clientAuth");
    add_extension(certificate,
                  issuer,
                  NID_subject_alt_name,
                  fmt::format("DNS:{},DNS:localhost,IP:127.0.0.1", name));
  }
  EVP_PKEY* signer = authority == nullptr ? key : authority->key.get();
  check(X509_sign(certificate, signer, EVP_sha256()) > 0, "sign a certificate");
  return made;
}

Identity issue(const std::string& name,
               const Identity* authority,
               int64_t valid_s = kCertificateValidS) {
  Identity made;
  made.key.reset(EVP_EC_gen("P-256"));
  check(made.key != nullptr, "make a key");
  made.certificate = certify(name, made.key.get(), authority, valid_s);
  return made;
}

std::string pem_of(BIO* memory) {
  char* text = nullptr;
  const long num_bytes = BIO_get_mem_data(memory, &text);
  return {text, static_cast<size_t>(num_bytes)};
}

std::string pem_of(X509* certificate) {
  const Memory memory(BIO_new(BIO_s_mem()));
  check(memory && PEM_write_bio_X509(memory.get(), certificate) == 1, "write a certificate");
  return pem_of(memory.get());
}

/// Null unless the text is a request that was signed with the key it is for.
Request read_request(const std::string& pem) {
  constexpr size_t kRequestBytesMax = 8 << 10;
  if (pem.size() > kRequestBytesMax) return nullptr;
  const Memory memory(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  Request request(PEM_read_bio_X509_REQ(memory.get(), nullptr, nullptr, nullptr));
  if (!request) return nullptr;
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  return key != nullptr && X509_REQ_verify(request.get(), key) == 1 ? std::move(request) : nullptr;
}

Identity open_authority(const fs::path& dir) {
  const fs::path certificate = dir / "ca.pem", key = dir / "ca.key";
  if (fs::exists(certificate) && fs::exists(key)) {
    Identity authority{.key = read_key(key), .certificate = read_certificate(certificate)};
    if (!authority.key || !authority.certificate) {
      fail("{}: the authority cannot be read; remove the folder and make it anew", dir.string());
    }
    return authority;
  }
  if (fs::exists(certificate) || fs::exists(key)) {
    fail("{}: only one of ca.pem and ca.key is there; remove the folder and make it anew",
         dir.string());
  }
  Identity authority = issue("pelago job authority", nullptr);
  write_key(key, authority.key.get());
  write_certificate(certificate, authority.certificate.get());
  return authority;
}

void refuse_bad_name(const std::string& name) {
  const bool good = !name.empty() && name.size() <= 63 &&
                    std::all_of(name.begin(), name.end(), [](unsigned char c) {
                      return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
                    });
  if (!good) {
    fail_usage("site name '{}': use at most 63 letters, digits, '.', '_' and '-'", name);
  }
  if (name == kCoordinatorName || name == "ca" || name == "localhost") {
    fail_usage("site name {}: it is taken; choose another", name);
  }
}

bool has_name(X509* certificate, const std::string& name) {
  return X509_check_host(certificate, name.c_str(), name.size(), 0, nullptr) == 1;
}

std::string problem_of_key(const fs::path& path, X509* certificate) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return fmt::format("{} is missing; run pelago certs", path.filename().string());
  }
  if ((info.st_mode & 077U) != 0) {
    return fmt::format("{} is readable by others; chmod 600 it", path.filename().string());
  }
  const Key key = read_key(path);
  if (!key || X509_check_private_key(certificate, key.get()) != 1) {
    return fmt::format("{} does not fit the certificate; run pelago certs anew",
                       path.filename().string());
  }
  return {};
}

std::string problem_of(const fs::path& path, X509* authority) {
  const Certificate certificate = read_certificate(path);
  if (!certificate) return "cannot be read; run pelago certs anew";
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) {
    return "has expired; run pelago certs anew";
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) > 0) {
    return "is not valid yet; set this machine's clock";
  }
  if (X509_verify(certificate.get(), X509_get0_pubkey(authority)) != 1) {
    return "was signed by another authority than ca.pem; copy both from one pelago certs";
  }
  const std::string name = path.stem().string();
  if (name != "ca" && !has_name(certificate.get(), name)) {
    return fmt::format("is not for {}; it was renamed, copy the right one", name);
  }
  // Sites other than the one that signs hold no ca.key, and only their own key.
  fs::path key = path;
  key.replace_extension(".key");
  if (!fs::exists(key)) return {};
  return problem_of_key(key, certificate.get());
}

}  // namespace

std::string make_certificate_request(const fs::path& key_path, const std::string& site) {
  refuse_bad_name(site);
  Key key = read_key(key_path);
  if (!key) {
    if (fs::exists(key_path))
      fail("{}: not a key; remove it, a new one is made", key_path.string());
    key.reset(EVP_EC_gen("P-256"));
    check(key != nullptr, "make a key");
    write_key(key_path, key.get());
  }
  const Request request(X509_REQ_new());
  check(request && X509_REQ_set_pubkey(request.get(), key.get()) == 1 &&
            X509_REQ_sign(request.get(), key.get(), EVP_sha256()) > 0,
        "make a request for a certificate");
  const Memory memory(BIO_new(BIO_s_mem()));
  check(memory && PEM_write_bio_X509_REQ(memory.get(), request.get()) == 1, "write a request");
  return pem_of(memory.get());
}

Result<std::string> request_key_hash(const std::string& request_pem) {
  const Request request = read_request(request_pem);
  if (!request) {
    return Error{ErrorCode::kCorrupt, "not a request for a certificate signed with its own key"};
  }
  unsigned char* der = nullptr;
  const int num_bytes = i2d_PUBKEY(X509_REQ_get0_pubkey(request.get()), &der);
  check(num_bytes > 0, "read a key");
  std::string hash =
      sha256_hex({reinterpret_cast<const char*>(der), static_cast<size_t>(num_bytes)});
  OPENSSL_free(der);
  return hash;
}

Result<std::string> sign_request(const fs::path& dir,
                                 const std::string& request_pem,
                                 const std::string& site) {
  refuse_bad_name(site);
  const Request request = read_request(request_pem);
  if (!request) {
    return Error{ErrorCode::kCorrupt, "not a request for a certificate signed with its own key"};
  }
  const Identity authority = open_authority(dir);
  return pem_of(certify(site, X509_REQ_get0_pubkey(request.get()), &authority).get());
}

std::vector<std::string> renew_certificates(const fs::path& dir, int64_t valid_s) {
  if (!fs::exists(dir / "ca.key")) {
    fail_usage("{}: has no ca.key; renew where the certificates were made", dir.string());
  }
  const Identity authority = open_authority(dir);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().stem().string();
    if (entry.path().extension() != ".key" || name == "ca") continue;
    const Key key = read_key(entry.path());
    if (!key) fail("{}: not a key; remove it and run pelago certs", entry.path().string());
    // In one move: whoever opens a connection meanwhile reads the old one or the new one.
    write_file(dir / (name + ".pem"), pem_of(certify(name, key.get(), &authority, valid_s).get()));
    names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string sha256_hex(std::string_view bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int num_bytes = 0;
  check(
      EVP_Digest(bytes.data(), bytes.size(), digest.data(), &num_bytes, EVP_sha256(), nullptr) == 1,
      "hash");
  return fmt::format("{:02x}", fmt::join(digest.begin(), digest.begin() + num_bytes, ""));
}

std::string random_hex(size_t num_bytes) {
  std::vector<unsigned char> bytes(num_bytes);
  check(RAND_bytes(bytes.data(), static_cast<int>(num_bytes)) == 1, "draw a secret");
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

void make_certificates(const fs::path& dir,
                       const std::vector<std::string>& sites,
                       int64_t valid_s) {
  for (const std::string& site : sites) refuse_bad_name(site);
  std::error_code reason;
  fs::create_directories(dir, reason);
  if (reason) fail("{}: cannot be made: {}", dir.string(), reason.message());
  const Identity authority = open_authority(dir);
  std::vector<std::string> names = sites;
  names.emplace_back(kCoordinatorName);
  for (const std::string& name : names) {
    if (fs::exists(dir / (name + ".pem")) && fs::exists(dir / (name + ".key"))) continue;
    fs::remove(dir / (name + ".pem"));
    fs::remove(dir / (name + ".key"));
    const Identity made = issue(name, &authority, valid_s);
    write_key(dir / (name + ".key"), made.key.get());
    write_certificate(dir / (name + ".pem"), made.certificate.get());
  }
  sync_to_disk(dir);
}

std::string problem_of_identity(const fs::path& dir, const std::string& name) {
  const Certificate authority = read_certificate(dir / "ca.pem");
  if (!authority) {
    return fmt::format("{}: cannot be read; run pelago certs", (dir / "ca.pem").string());
  }
  const fs::path path = dir / (name + ".pem");
  std::string problem = problem_of(path, authority.get());
  if (problem.empty() && !fs::exists(dir / (name + ".key"))) {
    problem = "has no key beside it; copy NAME.pem and NAME.key from one pelago certs";
  }
  return problem.empty() ? "" : fmt::format("{} {}", path.string(), problem);
}

std::vector<CertificateCheck> check_certificates(const fs::path& dir) {
  const Certificate authority = read_certificate(dir / "ca.pem");
  if (!authority) {
    return {{.name = "ca.pem",
             .problem = fmt::format("not found in {}; run pelago certs", dir.string())}};
  }
  std::vector<CertificateCheck> checks;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() != ".pem") continue;
    checks.push_back({.name = entry.path().filename().string(),
                      .problem = problem_of(entry.path(), authority.get())});
  }
  std::sort(
      checks.begin(), checks.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return checks;
}

}  // namespace pelago::sites
