#include "plan/fleet.h"

#include "base/threads.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

constexpr const char* kMixedSites = R"(
[emulation]
slowdown = 3000
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
[[site.device]]
device = "emulated:h20"
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:huawei-910b2"
count = 2
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 200
rtt_ms = 30
emulate = true
)";

constexpr const char* kOneSite = "[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'cpu'\n";

std::string two_cpu_sites(const std::string& names, const std::string& rest) {
  return fmt::format(
      "[[site]]\nname = '{}'\n[[site.device]]\ndevice = 'cpu'\n[[site]]\nname = '{}'\n"
      "[[site.device]]\ndevice = 'cpu'\n{}",
      names.substr(0, 1),
      names.substr(1, 1),
      rest);
}

std::string refusal_of(const std::string& toml) {
  return refusal([&] { fleet_from(toml); });
}

std::string refusal_of_device(const std::string& lines) {
  return refusal_of("[[site]]\nname = 'a'\n[[site.device]]\n" + lines);
}

TEST_CASE("two sites are read in order, with canonical chips, counted devices and their line") {
  const FleetConfig fleet = fleet_from(kMixedSites);
  REQUIRE(fleet.sites.size() == 2);
  CHECK(fleet.sites[0].name == "lingang");
  REQUIRE(fleet.sites[0].devices.size() == 2);
  CHECK(fleet.sites[0].devices[1].device == "emulated:nvidia-h20");
  REQUIRE(fleet.sites[1].devices.size() == 2);
  CHECK(fleet.sites[1].devices[1].device == "emulated:huawei-910b2");
  CHECK(fleet.sites[1].devices[1].chip == "huawei-910b2");
  CHECK(fleet.emulation_slowdown == 3000);
  CHECK(!fleet.emulation_memory_gib);
  const FleetLink* link = fleet.link_between("guizhou", "lingang");
  REQUIRE(link != nullptr);
  CHECK(link->bandwidth_mbit_s == 200);
  CHECK(link->rtt_ms == 30);
  CHECK(link->emulate);
}

TEST_CASE("the text that is kept reads back as the same fleet") {
  const FleetConfig fleet = fleet_from(kMixedSites, {"emulation.memory_gib=2"});
  const FleetConfig again = fleet_from(fleet.source_toml);
  CHECK(again.sites.size() == 2);
  CHECK(again.emulation_memory_gib == 2.0);
  CHECK(again.source_toml == fleet.source_toml);
}

TEST_CASE("emulated devices of a site are dealt to the processors in turn, from the first") {
  const std::vector<int> allowed = allowed_cores();
  const FleetConfig fleet = fleet_from(kMixedSites);
  for (const FleetSite& site : fleet.sites) {
    for (size_t i = 0; i < site.devices.size(); ++i) {
      CHECK(site.devices[i].cores == std::vector<int>{allowed[i % allowed.size()]});
    }
  }
}

TEST_CASE("a processor alone in its site gets all cores, and named cores are dealt over a count") {
  CHECK(fleet_from(kOneSite).sites[0].devices[0].cores == allowed_cores());
  const FleetConfig dealt = fleet_from(
      "[[site]]\nname='a'\n[[site.device]]\ndevice='cpu'\ncount=2\ncores=[4, 5, 6, 7]\n");
  CHECK(dealt.sites[0].devices[0].cores == std::vector<int>{4, 6});
  CHECK(dealt.sites[0].devices[1].cores == std::vector<int>{5, 7});
}

TEST_CASE("a count of numbered devices numbers them on, and leaves them unbound") {
  const FleetConfig fleet =
      fleet_from("[[site]]\nname='a'\n[[site.device]]\ndevice='cuda:2'\ncount=3\nchip='a100'\n");
  REQUIRE(fleet.sites[0].devices.size() == 3);
  CHECK(fleet.sites[0].devices[0].device == "cuda:2");
  CHECK(fleet.sites[0].devices[2].device == "cuda:4");
  CHECK(fleet.sites[0].devices[2].chip == catalogue().find("a100").id);
  CHECK(fleet.sites[0].devices[2].cores.empty());
}

TEST_CASE("a fleet without emulated devices has no slowdown") {
  CHECK(fleet_from(std::string(kOneSite) + "[emulation]\nslowdown = 5\n").emulation_slowdown == 0);
}

TEST_CASE("an unknown chip is refused with the nearest one") {
  const std::string message = refusal_of_device("device = 'emulated:nvidia-h2'\n");
  contains(message, "fleet.toml: site[0].device[0]: ");
  contains(message, "nvidia-h2");
  contains(message, "nvidia-h20");
  contains(refusal_of_device("device = 'cuda:0'\nchip = 'a1000'\n"), "a100");
}

TEST_CASE("a device of no known kind is refused with the kinds, one without a number with it") {
  contains(refusal_of_device("device = 'gpu:0'\n"), "device = \"gpu:0\" is unknown");
  contains(refusal_of_device("device = 'gpu:0'\n"), "cuda");
  contains(refusal_of_device("device = 'cuda'\n"), "lacks its number: write \"cuda:0\"");
  contains(refusal_of_device("device = 'cuda:x'\n"), "lacks its number");
  contains(refusal_of_device("count = 2\n"), "device is missing");
  contains(refusal_of_device("device = 'cpu'\ncount = 0\n"), "count = 0 must be between 1");
}

TEST_CASE("cores that are no processors are refused") {
  contains(refusal_of_device("device = 'cpu'\ncores = [0.5]\n"), "cores holds 0.5");
  contains(refusal_of_device("device = 'cpu'\ncores = [-1]\n"), "cores holds -1");
  contains(refusal_of_device("device = 'cpu'\ncores = [1, 1]\n"), "names processor 1 twice");
}

TEST_CASE("a real device that stands twice in a site is refused") {
  contains(refusal_of("[[site]]\nname='a'\n[[site.device]]\ndevice='cuda:0'\ncount=2\n"
                      "[[site.device]]\ndevice='cuda:1'\n"),
           "device \"cuda:1\" stands twice in site \"a\"");
}

TEST_CASE("a fleet without a site and a site without a device are refused") {
  contains(refusal_of("[emulation]\nslowdown = 3\n"), "no site; add [[site]]");
  contains(refusal_of("[[site]]\nname = 'a'\n"), "site \"a\" has no device");
}

TEST_CASE("a site without a fit name is refused") {
  contains(refusal_of("[[site]]\n[[site.device]]\ndevice = 'cpu'\n"),
           "name = \"\" must be 1 to 40");
  contains(refusal_of("[[site]]\nname = 'a/b'\n[[site.device]]\ndevice = 'cpu'\n"),
           "name = \"a/b\" must be");
}

TEST_CASE("two sites of one name are refused") {
  contains(refusal_of(two_cpu_sites("aa", "")), "site[1]: a second site of the name \"a\"");
}

TEST_CASE("a link to no site is refused with the nearest one") {
  contains(refusal_of(two_cpu_sites("ab", "[[link]]\nbetween = ['a', 'guizou']\n")),
           "link to \"guizou\", which is no site of this fleet; its sites are a, b");
  std::string toml = kMixedSites;
  toml.replace(toml.rfind("guizhou"), 7, "guizou");
  contains(refusal_of(toml), "did you mean guizhou?");
}

TEST_CASE("two sites without a link are refused by name") {
  contains(refusal_of(two_cpu_sites("ab", "")),
           "no link between the sites \"a\" and \"b\"; add [[link]]");
}

TEST_CASE("a link to itself, to three, or given twice is refused") {
  contains(refusal_of(two_cpu_sites("ab", "[[link]]\nbetween = ['a', 'a']\n")),
           "must name two different sites");
  contains(refusal_of(two_cpu_sites("ab", "[[link]]\nbetween = ['a', 'b', 'c']\n")),
           "must name two different sites");
  contains(refusal_of(two_cpu_sites(
               "ab", "[[link]]\nbetween = ['a', 'b']\n[[link]]\nbetween = ['b', 'a']\n")),
           "link[1]: a second link between \"b\" and \"a\"");
}

TEST_CASE("a bandwidth or a round trip that is not positive is refused") {
  const std::string link = "[[link]]\nbetween = ['a', 'b']\n";
  contains(refusal_of(two_cpu_sites("ab", link + "bandwidth_mbit_s = 0\n")),
           "link[0]: bandwidth_mbit_s = 0 must be greater than 0");
  contains(refusal_of(two_cpu_sites("ab", link + "rtt_ms = -3\n")),
           "rtt_ms = -3 must be greater than 0");
  contains(refusal_of(two_cpu_sites("ab", link + "rtt_ms = nan\n")), "rtt_ms = nan");
}

TEST_CASE("emulated devices without a slowdown, or with a wrong one, are refused") {
  contains(refusal_of_device("device = 'emulated:h20'\n"),
           "emulated:nvidia-h20 of site \"a\" needs [emulation] slowdown");
  contains(refusal_of(std::string(kOneSite) + "[emulation]\nslowdown = 0\n"),
           "slowdown = 0 must be greater than 0");
  contains(refusal_of(std::string(kOneSite) + "[emulation]\nmemory_gib = -1\n"),
           "memory_gib = -1 must be greater than 0");
}

TEST_CASE("an unknown key is refused wherever it stands, before what it left out is missed") {
  contains(refusal_of(std::string(kOneSite) + "[emulaton]\nslowdown = 3\n"),
           "did you mean emulation?");
  contains(refusal_of_device("devcie = 'cpu'\n"), "did you mean device?");
  contains(refusal_of("[[site]]\nnmae = 'a'\n"), "did you mean name?");
  contains(refusal_of(two_cpu_sites("ab", "[[link]]\nbetwen = ['a', 'b']\n")),
           "did you mean between?");
  contains(refusal_of(std::string(kOneSite) + "[emulation]\nslowdwn = 3\n"),
           "did you mean slowdown?");
}

}  // namespace
}  // namespace pelago::plan
