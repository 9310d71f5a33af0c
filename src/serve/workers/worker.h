// A worker's side: one engine in a process of its own, at a router's disposal. It opens what the
// first message says, answers what it is sent, tells ten times a second that it lives, and ends
// when the router is gone. Nothing here knows what a router does with several of them.
#pragma once

#include <functional>
#include <memory>

#include "serve/engine.h"
#include "serve/workers/link/messages.h"

namespace pelago::serve {

using OpenWorkerEngine = std::function<std::unique_ptr<Engine>(const OpenMessage&)>;

/// Serves until the link is shut. socket: the worker's end, taken over. open: tests bring engines
/// of their own. Returns the process's exit code.
int run_worker(int socket, const OpenWorkerEngine& open);
/// With the engine on the chips at hand.
int run_worker(int socket);

}  // namespace pelago::serve
