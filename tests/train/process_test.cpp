#include <doctest/doctest.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/process/child.h"
#include "train/process/packet_socket.h"
#include "train/process/shared_weights.h"
#include "train/scratch_folder.h"

namespace pelago::train {
namespace {

ChildProcess shell(const std::string& script, ChildOptions options = {}) {
  options.program = "/bin/sh";
  options.arguments = {"-c", script};
  return ChildProcess(options);
}

TEST_CASE("a child's exit code and its death by a signal are told apart") {
  ChildProcess failing = shell("exit 7");
  REQUIRE(failing.wait(5));
  CHECK(failing.exit_code() == 7);
  CHECK_FALSE(failing.was_killed());
  ChildProcess killed = shell("kill -9 $$");
  REQUIRE(killed.wait(5));
  CHECK(killed.was_killed());
  CHECK(killed.how_it_ended() == "was killed by signal 9 (Killed)");
}

TEST_CASE("a child is gone when its owner lets go of it") {
  pid_t pid = -1;
  {
    const ChildProcess child = shell("sleep 100");
    pid = child.pid();
    CHECK(::kill(pid, 0) == 0);
  }
  CHECK(::kill(pid, 0) != 0);
}

TEST_CASE("a child does not hear the interrupts that a terminal sends to everyone") {
  auto [ours, theirs] = PacketSocket::make_pair();
  ChildOptions options;
  options.descriptors = {{theirs.descriptor(), 3}};
  ChildProcess child = shell("kill -INT $$; kill -TERM $$; echo alive >&3", options);
  theirs.close();
  CHECK(ours.receive() == "alive\n");
}

TEST_CASE("the end of a child is seen at the socket, after all that it sent") {
  auto [ours, theirs] = PacketSocket::make_pair();
  ChildOptions options;
  options.descriptors = {{theirs.descriptor(), 3}};
  ChildProcess child = shell("echo one >&3; echo two >&3", options);
  theirs.close();
  REQUIRE(child.wait(5));
  CHECK(ours.receive() == "one\n");
  CHECK_FALSE(ours.is_at_end());
  CHECK(ours.receive() == "two\n");
  CHECK(ours.is_at_end());
  CHECK_FALSE(ours.receive());
  CHECK_FALSE(ours.send("anyone there?"));
}

TEST_CASE(
    "a child has only the descriptors that it was given, and the environment that was asked") {
  const ScratchFolder scratch("child");
  ChildOptions options;
  options.log = scratch.path() / "log";
  options.environment = {"PELAGO_TEST=yes", "HOME=/nowhere"};
  ChildProcess child = shell("ls /proc/self/fd | wc -l; echo $PELAGO_TEST $HOME", options);
  REQUIRE(child.wait(5));
  // 0, 1, 2 and the folder that ls itself reads.
  CHECK(read_text_file(options.log) == "4\nyes /nowhere\n");
}

TEST_CASE("shared weights are one memory for all who attach, and refuse another size") {
  const SharedWeights first = SharedWeights::create(1000);
  const SharedWeights second = SharedWeights::attach(::dup(first.descriptor()), 1000);
  first.local()[999] = 1.5F;
  second.merged()[0] = 2.5F;
  CHECK(second.local()[999] == 1.5F);
  CHECK(first.merged()[0] == 2.5F);
  CHECK_THROWS_AS(SharedWeights::attach(first.descriptor(), 999), Failure);
}

}  // namespace
}  // namespace pelago::train
