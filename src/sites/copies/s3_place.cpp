#include "sites/copies/s3_place.h"

#include <cstdlib>

#include "base/error.h"

namespace pelago::sites {

namespace {

// Anything else would have to be encoded, and stores differ in how they sign what is encoded.
constexpr const char* kKeyChars =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~/";
constexpr const char* kBucketChars = "abcdefghijklmnopqrstuvwxyz0123456789-.";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string first_of(const char* name, const char* other) {
  const std::string value = variable(name);
  return value.empty() ? variable(other) : value;
}

}  // namespace

S3Place parse_s3_place(const std::string& text) {
  constexpr const char* kScheme = "s3://";
  const auto refuse = [&](const char* why) {
    fail_usage("checkpoint.copy_to = \"{}\": {}; write s3://BUCKET/PREFIX", text, why);
  };
  if (text.rfind(kScheme, 0) != 0) refuse("does not begin with s3://");
  const std::string rest = text.substr(std::string(kScheme).size());
  S3Place place;
  place.bucket = rest.substr(0, rest.find('/'));
  if (rest.size() > place.bucket.size()) place.prefix = rest.substr(place.bucket.size() + 1);
  while (!place.prefix.empty() && place.prefix.back() == '/') place.prefix.pop_back();
  if (place.bucket.size() < 3 || place.bucket.size() > 63 ||
      place.bucket.find_first_not_of(kBucketChars) != std::string::npos) {
    refuse("has no name of a bucket (3 to 63 of a-z, 0-9, - and .)");
  }
  if (place.prefix.find_first_not_of(kKeyChars) != std::string::npos) {
    refuse("has a character in its prefix that is not of a-z, A-Z, 0-9, -_.~/");
  }
  if (place.prefix.size() > 512 || place.prefix.find("//") != std::string::npos ||
      ("/" + place.prefix + "/").find("/../") != std::string::npos) {
    refuse("has a prefix that is too long, or with an empty or \"..\" part");
  }
  return place;
}

S3Account account_from_environment() {
  S3Account account;
  account.access_key = variable("AWS_ACCESS_KEY_ID");
  account.secret_key = variable("AWS_SECRET_ACCESS_KEY");
  for (const auto& [name, value] : {std::pair("AWS_ACCESS_KEY_ID", &account.access_key),
                                    std::pair("AWS_SECRET_ACCESS_KEY", &account.secret_key)}) {
    if (!value->empty()) continue;
    fail_usage(
        "checkpoint.copy_to needs the environment variable {}, which is not set; set it "
        "where sites start, or leave the key out",
        name);
  }
  account.session_token = variable("AWS_SESSION_TOKEN");
  const std::string region = first_of("AWS_REGION", "AWS_DEFAULT_REGION");
  if (!region.empty()) account.region = region;
  account.endpoint = first_of("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL");
  while (!account.endpoint.empty() && account.endpoint.back() == '/') account.endpoint.pop_back();
  return account;
}

std::string url_of(const S3Place& place, const S3Account& account, const std::string& key) {
  const std::string endpoint = account.endpoint.empty()
                                   ? fmt::format("https://s3.{}.amazonaws.com", account.region)
                                   : account.endpoint;
  const std::string prefix = place.prefix.empty() ? "" : place.prefix + "/";
  return fmt::format("{}/{}/{}{}", endpoint, place.bucket, prefix, key);
}

}  // namespace pelago::sites
