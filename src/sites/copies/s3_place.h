// Where copies of checkpoints go: a bucket of any store that speaks Amazon's S3 protocol, and who
// we are there. The account comes from the environment variables that every tool for such stores
// reads, so that no secret stands in a job.
#pragma once

#include <string>

namespace pelago::sites {

struct S3Place {
  std::string bucket;
  std::string prefix;  // "" or "a/b": keys begin with it
};
/// "s3://BUCKET/PREFIX". Throws Failure (exit 2) naming what is wrong; characters that would have
/// to be encoded in a URL are refused.
S3Place parse_s3_place(const std::string& text);

struct S3Account {
  std::string access_key, secret_key;
  std::string session_token;  // of temporary credentials; else empty
  std::string region = "us-east-1";
  std::string endpoint;  // "https://HOST[:PORT]"; empty: Amazon's own of the region
};
/// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION,
/// AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL. Throws Failure (exit 2) naming what is missing.
S3Account account_from_environment();

/// The URL of a key, without a query. The bucket stands in the path: that works everywhere.
std::string url_of(const S3Place& place, const S3Account& account, const std::string& key);

}  // namespace pelago::sites
