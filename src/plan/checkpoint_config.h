// What becomes of checkpoints besides lying on the site's disk: [checkpoint] of job.toml. Read from
// the job's text by whoever copies; planning and training know nothing of it.
#pragma once

#include <string>

namespace pelago::plan {

struct JobConfig;

struct CheckpointConfig {
  std::string copy_to;  // "s3://BUCKET/PREFIX": the newest train.keep_checkpoints lie there, too,
                        // for the day on which the disk is gone; empty: nowhere
};

/// Throws Failure (exit 2) if a value is bad.
CheckpointConfig checkpoint_config_of(const JobConfig& job);

}  // namespace pelago::plan
