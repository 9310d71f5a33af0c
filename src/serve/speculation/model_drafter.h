// A small model guesses for a large one of the same vocabulary. It draws with the random number of
// the position, as the large one will: where the two give much the same probabilities they draw the
// same token, at any temperature.
#pragma once

#include <map>
#include <memory>

#include "serve/pages/page_pool.h"
#include "serve/runner/model_runner.h"
#include "serve/speculation/drafter.h"

namespace pelago::serve {

class ModelDrafter final : public Drafter {
 public:
  explicit ModelDrafter(std::unique_ptr<ModelRunner> runner);
  void propose(std::span<const DraftTask> tasks) override;
  void forget(const Sequence& sequence) override { known_.erase(&sequence); }

 private:
  /// What the small model has read of a sequence.
  struct Known {
    explicit Known(PagePool& pool) : pages(pool) {}
    PageTable pages;
    std::vector<int32_t> tokens;  // whose keys and values lie in the pages
  };
  struct Reader;
  bool catch_up(const DraftTask& task, Known& known);
  void read_last(std::vector<Reader>& readers);

  const std::unique_ptr<ModelRunner> runner_;
  PagePool pool_;
  std::map<const Sequence*, Known> known_;
  SamplerScratch scratch_;
};

}  // namespace pelago::serve
