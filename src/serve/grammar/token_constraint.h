// Structured output, as the engine sees it: at each position a constraint says which tokens may
// come next, and whether the answer may end there.
#pragma once

#include <memory>

#include "serve/engine.h"
#include "serve/sampling/token_mask.h"

namespace pelago::serve {

/// Where one answer stands in its constraint. Belongs to one thread.
class TokenCursor {
 public:
  TokenCursor() = default;
  TokenCursor(const TokenCursor&) = delete;
  TokenCursor& operator=(const TokenCursor&) = delete;
  virtual ~TokenCursor() = default;

  /// The tokens that may come next, those that end the text aside. Valid until advance(). kRefused
  /// if finding out would take more work than a pattern may cost.
  virtual Result<const TokenMask*> allowed() = 0;
  /// The answer goes on with an allowed token.
  virtual void advance(int32_t token) = 0;
  /// What has come so far is a whole answer.
  virtual bool may_end() const = 0;
};

/// Immutable; any number of threads may start cursors.
class TokenConstraint {
 public:
  TokenConstraint() = default;
  TokenConstraint(const TokenConstraint&) = delete;
  TokenConstraint& operator=(const TokenConstraint&) = delete;
  virtual ~TokenConstraint() = default;

  /// The cursor keeps what it needs of the constraint alive.
  virtual std::unique_ptr<TokenCursor> start() const = 0;
};

}  // namespace pelago::serve
