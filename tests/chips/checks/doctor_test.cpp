#include "chips/doctor.h"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/error.h"
#include "chips/checks/checks.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

const Check* find_check(const std::vector<Check>& findings, const std::string& name) {
  const auto found = std::ranges::find(findings, name, &Check::name);
  return found == findings.end() ? nullptr : &*found;
}

TEST_CASE("every finding of the examination has a text, and a remedy if it is bad") {
  const std::vector<Check> findings = examine_machine({});
  for (const char* name : {"cpu",
                           "cores",
                           "memory",
                           "clocks",
                           "disk",
                           "port",
                           "blas",
                           "bf16",
                           "cuda",
                           "emulator",
                           "vendors",
                           "answers cpu",
                           "answers emulated:a100"}) {
    CAPTURE(name);
    CHECK(find_check(findings, name) != nullptr);
  }
  for (const Check& check : findings) {
    CAPTURE(check.name);
    CHECK(!check.text.empty());
    CHECK((check.level == Check::kOk) == check.remedy.empty());
  }
  CHECK(find_check(findings, "answers cpu")->level == Check::kOk);
  CHECK(find_check(findings, "answers emulated:a100")->level == Check::kOk);
}

TEST_CASE("an fp16 chip gives the known answers too") {
  const Catalogue catalogue = Catalogue::built_in();
  const auto device = open_device("emulated:910a", catalogue, {.slowdown = 1});
  const Check check = check_known_answers(*device);
  CAPTURE(check.text);
  CHECK(check.level == Check::kOk);
}

TEST_CASE("a folder that cannot be written is a failure that names it") {
  const Check check = checks::disk("/nowhere/at/all");
  CHECK(check.level == Check::kFail);
  CHECK(check.text.find("/nowhere/at/all") != std::string::npos);
  CHECK(!check.remedy.empty());
}

TEST_CASE("a port that is taken or impossible is a failure") {
  const int holder = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  socklen_t length = sizeof address;
  REQUIRE(bind(holder, reinterpret_cast<sockaddr*>(&address), length) == 0);
  REQUIRE(listen(holder, 1) == 0);
  REQUIRE(getsockname(holder, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  const int port = ntohs(address.sin_port);
  CHECK(checks::port(port).level == Check::kFail);
  close(holder);
  CHECK(checks::port(70000).level == Check::kFail);
  CHECK(checks::port(0).level == Check::kOk);
}

TEST_CASE("a device that cannot be opened is a finding, not an exception") {
  const std::vector<Check> findings = examine_machine({.devices = {"cpu", "emulated:a1000"}});
  const Check* check = find_check(findings, "answers emulated:a1000");
  REQUIRE(check != nullptr);
  CHECK(check->level == Check::kFail);
  CHECK(check->text.find("a100") != std::string::npos);
}

TEST_CASE("a missing emulator is a warning with the remedy") {
  const Check check = checks::emulator_plugin({.plugin_dir = "/nowhere"});
  CHECK(check.level == Check::kWarn);
  CHECK(check.remedy.find("pelago_emulator") != std::string::npos);
}

}  // namespace
}  // namespace pelago::chips
